"""An ASGI application on a thread of the test, on a free port of loopback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[int]:
    """Serve it with these options of uvicorn; its port. It takes connections from the beginning on."""
    config = uvicorn.Config(app, port=0, log_level="error", **options)
    server = uvicorn.Server(config)
    bound = config.bind_socket()
    bound.listen()  # uvicorn does that when it has started, which may be after the first request
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
