"""Stand-in for the EasyPanel panel, for development and tests only. See README.md."""
