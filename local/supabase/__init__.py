"""Stand-in for Supabase Auth, for development and tests only. Mail goes to an inbox page."""
