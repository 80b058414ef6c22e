"""One commit of a git repository over HTTP(S), without git's program: `python -m cimt_etl.git`, its order on stdin.

A process of its own, with limits. Redirects, submodules, hooks, other protocols: there is no code for them here.
"""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpcore
import httpx
from dulwich.client import AbstractHttpGitClient
from dulwich.repo import Repo

from .fetch import AGENT, FILES, GIT_SECONDS, Failed, Reach, SyncCheckedNetwork, basic, ref_names
from .limits import limit

PACK_BYTES = 200 * 1024 * 1024
MEMORY_BYTES = 128 * 1024 * 1024


class Client(AbstractHttpGitClient):
    """dulwich's client over a connection to checked addresses, with a limit of bytes."""

    def __init__(self, url: str, reach: Reach, token: str) -> None:
        super().__init__(url)
        transport = httpx.HTTPTransport()
        transport._pool._network_backend = SyncCheckedNetwork(reach)
        headers = {
            "User-Agent": f"git/2.45 ({AGENT})",
            **({"Authorization": basic(token)} if token else {}),
        }
        self.http = httpx.Client(transport=transport, trust_env=False, headers=headers, timeout=60)

    def _http_request(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        data: bytes | Iterator[bytes] | None = None,
        raise_for_status: bool = True,
    ) -> tuple[Any, Callable[[int], bytes]]:
        request = self.http.build_request(
            "POST" if data else "GET", url, headers=headers, content=data
        )
        response = self.http.send(request, stream=True)
        if response.status_code != 200 and raise_for_status:
            hint = {401: " (no token, or not the right one)", 404: " (not there, or private)"}
            moved = (
                f" to {response.headers.get('location', '')}: declare that address"
                if response.has_redirect_location
                else ""
            )
            raise Failed(f"HTTP {response.status_code}{hint.get(response.status_code, moved)}")
        body, kept, total = response.iter_bytes(65536), bytearray(), 0

        def read(size: int = -1) -> bytes:
            nonlocal total
            while size < 0 or len(kept) < size:
                part = next(body, b"")
                if not part:
                    break
                kept.extend(part)
                total += len(part)
                if total > PACK_BYTES:
                    raise Failed(f"more than {PACK_BYTES >> 20} MB: declare a smaller repository")
            taken = bytes(kept[: size if size >= 0 else len(kept)])
            del kept[: len(taken)]
            return taken

        described = SimpleNamespace(
            content_type=response.headers.get("content-type"), redirect_location="", status=response.status_code,
            close=response.close,
        )  # fmt: skip
        return described, read


def checkout(order: dict[str, Any]) -> dict[str, Any]:
    """Return {commit, files: {path: blob}}; those not in `known` are written to `into`."""
    reach = Reach(frozenset(order["allow"]), frozenset(order["own"]))
    client = Client(order["url"], reach, order.get("token", ""))
    wanted = order.get("ref") or "HEAD"
    if re.fullmatch(r"[0-9a-f]{40}", wanted):
        commit = wanted.encode()
    else:
        found = client.get_refs(b"")
        refs = found.refs if hasattr(found, "refs") else found
        commit = next(
            (refs[one.encode()] for one in ref_names(wanted) if refs.get(one.encode())), b""
        )
        if not commit:
            raise Failed(f"has no branch or tag {wanted}")
    store = Path(order["into"]) / "repository"
    store.mkdir()
    repository = Repo.init_bare(store)
    client.fetch(b"", repository, determine_wants=lambda *_, **__: [commit], depth=1)
    top = repository[commit]
    while top.type_name == b"tag":
        top = repository[top.object[1]]
    prefix = f"{order['folder']}/" if order.get("folder") else ""
    chosen = re.compile(order["match"]) if order.get("match") else FILES
    files = {}
    for entry in repository.object_store.iter_tree_contents(top.tree):
        path = entry.path.decode("utf-8", "surrogateescape")
        if not stat.S_ISREG(entry.mode) or not path.startswith(prefix) or not chosen.search(path):
            continue
        try:
            path.encode()
        except UnicodeEncodeError:
            raise Failed(f"a name that is no UTF-8: {path!r}") from None
        blob = entry.sha.decode()
        files[path] = blob
        if order["known"].get(path) != blob:
            (Path(order["into"]) / blob).write_bytes(repository[entry.sha].data)
    return {"commit": commit.decode(), "files": files}


def main() -> None:
    """Answer the order on stdin with a line of JSON."""
    order = json.load(sys.stdin)
    limit(MEMORY_BYTES, GIT_SECONDS, GIT_SECONDS)
    try:
        done = checkout(order)
    except Failed as error:
        done = {"error": str(error)}
    except (httpx.HTTPError, httpcore.NetworkError, OSError) as error:
        done = {"error": str(error) or type(error).__name__}
    except Exception as error:  # noqa: BLE001 - what a server says may lead dulwich anywhere: it is told
        done = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    print(json.dumps(done))


if __name__ == "__main__":
    main()
