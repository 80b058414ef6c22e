"""A real n8n with the repository's workflows, and what lies outside of it."""
