"""What another service answers, read to its end."""

from __future__ import annotations

import aiohttp


async def read_whole(response: aiohttp.ClientResponse, longest: int) -> bytes:
    """Return the body of an answer. Raises ValueError where it has more than so many bytes, and aiohttp's errors."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > longest:
            raise ValueError(f"more than {longest} bytes")
    return bytes(body)
