"""A host as its owners look at it: `make status`, `make logs`."""
