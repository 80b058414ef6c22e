"""`python -m tools.services build|builds`: images of the apps that services/compose.yaml declares.

build   build and push the image of an app; without one, of every app that is released by digest, and of those
        with a tag of their own where the registry does not have it
builds  what was built here, as JSON: {app: {"image", "revision"}}
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from plugins.filter.compose import declared_services

ROOT = Path(__file__).parents[2]
SERVICES = ROOT / "services"
BUILT = ROOT / ".local/build"


def read() -> dict[str, dict[str, Any]]:
    """The apps, as `declared_services` describes them."""
    return declared_services((SERVICES / "compose.yaml").read_text())


def build(name: str, options: list[str], missing: bool) -> int:
    """Exit code of the build of one app; ``missing`` leaves alone a tag that the registry has."""
    app = read()[name]
    command = [str(ROOT / "tools/build.sh"), name, *options]
    if app["tag"]:
        done = subprocess.run([SERVICES / app["tag"]], capture_output=True, text=True)
        if done.returncode:
            print(f"build: {app['tag']} failed: {done.stderr.strip()}", file=sys.stderr)
            return done.returncode
        command += ["--tag", done.stdout.strip(), *(["--missing"] if missing else [])]
    return subprocess.run(command, cwd=ROOT).returncode


def main(argv: list[str] | None = None) -> int:
    """Exit code of the first build that failed; 2 for an app that is not declared or has no image of ours."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.services",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("build")
    verb.add_argument("app", nargs="?", default="", help="only this one")
    verb.add_argument("--missing", action="store_true", help="only a tag that the registry has not")
    verb.add_argument("--local", action="store_true", help="for the droplet of `make up`")
    verb.add_argument("--no-push", action="store_true", help="only those released by digest")
    verbs.add_parser("builds")
    arguments = parser.parse_args(argv)
    apps = {name: app for name, app in read().items() if app["released"] or app["tag"]}
    if arguments.verb == "builds":
        found = {name: BUILT / f"{name}.json" for name in apps if (BUILT / f"{name}.json").exists()}
        kept = {name: json.loads(path.read_text()) for name, path in found.items()}
        print(
            json.dumps(
                {name: {k: one[k] for k in ("image", "revision")} for name, one in kept.items()}
            )
        )
        return 0
    options = [
        f"--{name}" for name in ("local", "no-push") if getattr(arguments, name.replace("-", "_"))
    ]
    if arguments.app and arguments.app not in apps:
        print(
            f"build: services/compose.yaml declares no app '{arguments.app}' with an image of ours. "
            f"Next: make build SERVICE={next(iter(apps))} (or: {', '.join(apps)})",
            file=sys.stderr,
        )
        return 2
    if arguments.app:
        return build(arguments.app, options, arguments.missing)
    left_out = {one.strip() for one in os.environ.get("LEAVE_OUT", "").split(",")}
    for name, app in apps.items():
        # Here a tagged image is made on request, and not where nothing is pushed: it would be made anew each time.
        if not app["released"] and (arguments.local or arguments.no_push):
            continue
        if name in left_out:
            continue
        if code := build(name, options, missing=True):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
