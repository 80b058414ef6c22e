"""What one writes in ten minutes: FastAPI, the official SDK, StreamingResponse. One of the things compared.

Usage: OPENAI_BASE_URL=… OPENAI_API_KEY=… uvicorn bench.api.plain:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI

from services.api.cimt_api.settings import Settings

app = FastAPI()
client = AsyncOpenAI()


@app.post("/chat")
async def chat(body: dict[str, Any]) -> StreamingResponse:
    """Relay one question."""

    async def lines() -> AsyncIterator[str]:
        chunks = await client.chat.completions.create(
            model=Settings.model_fields["chat_model"].default,
            messages=[{"role": "user", "content": body["message"]}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in chunks:
            yield f"data: {chunk.model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")
