"""Stand-in for OpenAI's API, for development and tests only: no key, no cost, no model, always the same answers."""
