"""Stand-in for Cloudflare's API: one account's zones, records, settings and Origin CA, after its published document."""
