"""Tests on the real n8n of local/images/n8n.py. Heavy, so not a part of `make check`: `make n8n-test`."""
