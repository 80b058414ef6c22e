"""The chat API of CIMT."""

__version__ = "0.1.0"
