"""Stand-in for the part of DigitalOcean's API that a droplet of ours needs."""
