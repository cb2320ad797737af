"""Gleaner's tasks: files in this folder are what runs, its folders are the extension points."""
