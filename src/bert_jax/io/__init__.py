"""Files: atomic output, local and remote paths, JSON and lines of text with their numbers."""
