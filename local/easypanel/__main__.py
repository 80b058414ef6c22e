"""Entry point of the stand-in's image: ``setup``, ``serve`` (the panel) or ``proxy`` (Caddy)."""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command; each imports only what it needs, because an emulated CPU pays for imports."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "setup":
        from .setup import main as run_setup

        return run_setup()
    if command == "serve":
        from .serve import main as run_serve

        return run_serve()
    if command == "proxy":
        from .proxy import main as run_proxy

        return run_proxy()
    print("usage: setup | serve | proxy (this image is a stand-in for development and tests)")
    return 2


if __name__ == "__main__":
    sys.exit(main())
