"""The local droplet and the local clouds. Development and tests only: production code never imports this."""
