"""Workflows of n8n as files: lint them, and bring edits of the editor back. `python -m tools.workflows`."""
