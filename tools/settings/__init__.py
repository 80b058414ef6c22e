"""services/settings.yaml, and all that is written from it."""
