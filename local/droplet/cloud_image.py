"""Ubuntu's own cloud image: downloaded once, resumed when cut off, used only when its checksum is right."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from local.cache import building
from local.droplet.disk import Image
from local.settings import LocalError, Settings

SERVER = "https://cloud-images.ubuntu.com/releases"
RELEASES = {"ubuntu-22.04": "jammy", "ubuntu-24.04": "noble"}
STALL_SECONDS = 30  # without a byte
TOTAL_SECONDS = 3600
LARGEST = 4 << 30  # bytes
CHUNK = 1 << 20


def ensure_ubuntu(settings: Settings, server: str = SERVER) -> Image:
    """The current release image, or the one in the cache when the server cannot be asked.

    Raises LocalError when there is neither.
    """
    name = settings.image
    images = settings.cache / "images"
    file = f"{name}-server-cloudimg-amd64.img"
    base = f"{server}/{RELEASES[name]}/release"
    try:
        checksum = _published(f"{base}/SHA256SUMS", file)
    except OSError as error:
        cached = sorted(images.glob(f"{name}-*/disk.img"), key=lambda path: path.stat().st_mtime)
        if not cached:
            raise LocalError(
                f"image: {base} cannot be reached ({getattr(error, 'reason', error)}). "
                "Next: check the network, or use an image that is built here: DROPLET_IMAGE=debian-13 make up"
            ) from None
        print(f"image: {base} cannot be reached; using the {name} image in the cache")
        return Image(name, cached[-1], "qcow2")
    target = images / f"{name}-{checksum[:16]}"
    image = Image(name, target / "disk.img", "qcow2")
    if target.is_dir():
        print(f"image: {name} from the cache ({target})")
        return image
    with building(target) as part:
        if part is not None:
            download(f"{base}/{file}", checksum, settings.cache / "downloads", part / "disk.img")
    return image


def download(url: str, checksum: str, keep: Path, target: Path) -> None:
    """Fetch `url` to `target`. What came before a cut stays in `keep` and is gone on from the next time.

    checksum: SHA-256, hex. Raises LocalError when the content does not match it (and forgets the content).
    """
    keep.mkdir(parents=True, exist_ok=True)
    partial = keep / f"{checksum}.part"
    digest = hashlib.sha256()
    if partial.exists():
        with partial.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    have = partial.stat().st_size if partial.exists() else 0
    started = said = time.monotonic()
    print(
        f"image: downloading {url}" + (f", going on from {have >> 20} MB" if have else ""),
        flush=True,
    )
    try:
        with _open(url, {"Range": f"bytes={have}-"} if have else {}) as response:
            if have and response.status != 206:  # the server starts from the beginning
                have, digest = 0, hashlib.sha256()
            total = have + int(response.headers.get("Content-Length") or 0)
            with partial.open("ab" if have else "wb") as stream:
                while chunk := response.read(CHUNK):
                    stream.write(chunk)
                    digest.update(chunk)
                    have += len(chunk)
                    now = time.monotonic()
                    if have > LARGEST or now - started > TOTAL_SECONDS:
                        raise OSError(f"gave up at {have >> 20} MB after {now - started:.0f} s")
                    if now - said > 10:
                        said = now
                        print(f"image: {have >> 20} of {total >> 20} MB", flush=True)
            if have < total:
                raise OSError(f"cut off at {have >> 20} of {total >> 20} MB")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: everything was there already
            raise LocalError(f"image: {url}: {error}. Next: make up (tries again)") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise LocalError(
            f"image: the download was interrupted ({reason}). Next: make up (goes on from there)"
        ) from None
    if digest.hexdigest() != checksum:
        partial.unlink()
        raise LocalError(
            f"image: the checksum of {url} is not the published one; the file was deleted. Next: make up"
        )
    try:
        os.replace(partial, target)
    except OSError:  # another file system
        shutil.copyfile(partial, target)
        partial.unlink()


def _published(url: str, file: str) -> str:
    """SHA-256 of `file` according to a SHA256SUMS list. Raises OSError when it cannot be fetched."""
    with _open(url, {}) as response:
        lines = response.read(1 << 20).decode("utf-8", "replace").splitlines()
    for line in lines:
        columns = line.split()
        if len(columns) == 2 and columns[1].lstrip("*") == file and len(columns[0]) == 64:
            return columns[0].lower()
    raise LocalError(f"image: {url} does not name {file}. Next: DROPLET_IMAGE=debian-13 make up")


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the URL is ours
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=STALL_SECONDS)  # noqa: S310
    return response
