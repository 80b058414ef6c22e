"""Seed ETL: sources become documents of the API; nothing is lost or changed on the way without a word."""
