"""Supabase's Postgres."""
