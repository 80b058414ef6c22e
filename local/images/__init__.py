"""Container images that are built here, because no registry is needed then."""
