"""Stand-in for 1Password."""
