"""What a merge changes in production, computed from the files of two trees, without a secret and without a droplet."""
