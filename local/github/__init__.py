"""Stand-in for GitHub."""
