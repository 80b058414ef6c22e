"""The database's verbs: migrate, check a migration, write its page, hand out or erase a person's data."""
