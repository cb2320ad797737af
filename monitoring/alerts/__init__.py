"""Alert channels, one file each; the file name is the value of ``alert.channel``."""
