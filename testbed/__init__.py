"""What tests and benches share: servers of their own on loopback, and waiting for them."""
