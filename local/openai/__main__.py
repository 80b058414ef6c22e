"""`python -m local.openai`: serve the stand-in on loopback until stopped."""

from __future__ import annotations

import sys

from local.serving import arguments, serve

from .app import StandIn
from .behaviour import Behaviour

SWITCHES = """\
switches (all requests, until told otherwise):
  curl -X PUT 127.0.0.1:PORT/stand-in/behaviour -d '{"kind": "slow", "first": 2, "delay": 0.2}'
  kind: normal, slow, rate_limited, failing, broken, endless, malformed
  also: times (then normal again), paths (["/v1/embeddings"]), retry_after, status, after (events), chunks, text
for one request: header "X-Stand-In: broken; after=5", or "[stand-in: broken; after=5]" in the question
the end of models: curl -X PUT 127.0.0.1:PORT/stand-in/shutdowns -d '{"gpt-6-luna": "2027-12-31"}'
  replaces the former dates; a model is served until the day before
counters: GET or DELETE /stand-in/calls; the last requests: GET /stand-in/requests
"""


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments("openai", "OpenAI's API", SWITCHES)
    parser.add_argument(
        "--chunks", type=int, default=0, help="tokens of every answer; 0: its own length"
    )
    parser.add_argument("--first", type=float, default=0.0, help="seconds before the first token")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between tokens")
    given = parser.parse_args()
    stand_in = StandIn(Behaviour(chunks=given.chunks, first=given.first, delay=given.delay))
    return serve(stand_in, given)


if __name__ == "__main__":
    sys.exit(main())
