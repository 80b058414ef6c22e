"""The apps of services/compose.yaml, as verbs build and release them."""
