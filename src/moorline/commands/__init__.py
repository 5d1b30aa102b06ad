"""What the command line does: words to calls, files to folders."""
