"""Checks, one file each; the file name is the key under ``monitor`` in params.yaml."""
