"""What scanners say about a droplet, and which of it stays for a reason."""
