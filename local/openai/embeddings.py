"""Embeddings without a model: a hashed bag of words, so texts that share words are near each other."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from array import array
from collections import Counter
from typing import Any

from .answers import tokens, words
from .errors import ApiError

NATIVE = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
FIRST = "text-embedding-3-small"
MOST_TOKENS = 8192
MOST_INPUTS = 2048
SPREAD = 4  # places of the vector for one word, so that two words are seldom taken for one


@functools.lru_cache(maxsize=65536)
def _places(word: str, model: str) -> tuple[tuple[int, float], ...]:
    """Where a word stands in the widest vector, and with which sign: in each model elsewhere."""
    salt = hashlib.blake2b(model.encode(), digest_size=16).digest() if model != FIRST else b""
    digest = hashlib.blake2b(word.encode(), digest_size=4 * SPREAD, salt=salt).digest()
    numbers = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 4 * SPREAD, 4)]
    return tuple((number >> 1, 1.0 if number & 1 else -1.0) for number in numbers)


def embed(text: str, size: int, model: str = FIRST) -> array[float]:
    """Unit vector of `size` 32-bit floats; the zero-free constant for a text without words."""
    vector = array("f", bytes(4 * size))
    for word, count in Counter(words(text)).items():
        weight = count * min(len(word), 8)  # what is said often, and long words, say more
        # An inflected form is near its stem: half of each word is its first five letters.
        for part in (word, word[:5]):
            for number, sign in _places(part, model):
                vector[number % size] += sign * weight
    length = math.sqrt(math.fsum(value * value for value in vector if value))
    if not length:
        vector[0] = length = 1.0
    for index, value in enumerate(vector):
        if value:
            vector[index] = value / length
    return vector


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """The body of POST /v1/embeddings. Raises ApiError for what the real one refuses."""
    model, wanted = str(body.get("model") or ""), body.get("input")
    if not model:
        raise ApiError(400, "you must provide a model parameter")
    inputs = [wanted] if isinstance(wanted, str) else wanted
    if isinstance(inputs, list) and inputs and all(isinstance(item, int) for item in inputs):
        inputs = [inputs]  # one text as token numbers
    if not isinstance(inputs, list) or not inputs or len(inputs) > MOST_INPUTS:
        raise ApiError(400, "'$.input' is invalid.", param="input")
    texts = [
        " ".join(map(str, item)) if isinstance(item, list) else str(item or "") for item in inputs
    ]
    if not all(texts):
        raise ApiError(400, "'$.input' is invalid: an input cannot be empty.", param="input")
    counts = [tokens(text) for text in texts]
    if max(counts) > MOST_TOKENS:
        raise ApiError(
            400,
            f"This model's maximum context length is {MOST_TOKENS} tokens, however you requested {max(counts)} "
            "tokens. Please reduce your prompt.",
            param="input",
        )
    native = NATIVE[model]
    size = body.get("dimensions", native)
    if (
        not isinstance(size, int)
        or not 1 <= size <= native
        or (size != native and "3" not in model)
    ):
        raise ApiError(400, f"'dimensions' must be from 1 to {native}.", param="dimensions")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise ApiError(400, "'encoding_format' is float or base64.", param="encoding_format")
    data = []
    for index, text in enumerate(texts):
        vector = embed(text, size, model)
        value = base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    used = sum(counts)
    usage = {"prompt_tokens": used, "total_tokens": used}
    return {"object": "list", "data": data, "model": model, "usage": usage}
