"""Models, one per file, and their shared parts, named by what they are."""
