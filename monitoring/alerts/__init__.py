"""Alert channels, one file each; a channel sends what the checks found to people."""
