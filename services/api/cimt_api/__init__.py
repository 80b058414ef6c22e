"""The product's API: one process per container, no state of its own."""

__version__ = "0.1.0"
