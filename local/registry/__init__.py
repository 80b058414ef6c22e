"""Stand-in for ghcr.io, for development and tests only: its logins and rights, in front of a real `docker-registry`."""
