"""`python -m local`: the local droplet and the local clouds, verb by verb."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time

from local import clouds, dev, up
from local.droplet import image, machine
from local.images import base as base_image
from local.images import n8n
from local.settings import PORTS, LocalError, Settings, load
from local.sign_in import sign_in


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    verbs = main.add_subparsers(dest="verb", required=True)
    for verb, text in {
        "up": "from nothing to a running product",
        "down": "remove the droplet and the clouds; caches and ports stay",
        "start": "droplet and clouds only, not provisioned",
        "stop": "power the droplet off and stop the clouds; everything is kept",
        "status": "what runs here, and where",
        "image": "make sure that the droplet's disk image exists",
        "dev": "the API with reload, Postgres and the stand-ins, without a virtual machine",
    }.items():
        verbs.add_parser(verb, help=text, description=text)
    droplet = verbs.add_parser("droplet", help="make sure that the droplet runs")
    ssh = verbs.add_parser("ssh", help="a shell or a command on the droplet")
    for each in (droplet, ssh):
        each.add_argument("--node", type=int, default=1, help="2: the worker of `make up NODES=2`")
    ssh.add_argument("command", nargs=argparse.REMAINDER)
    port = verbs.add_parser("port", help="print a host port, such as the registry's")
    port.add_argument("name", choices=list(PORTS))
    base = verbs.add_parser(
        "base", help="print the image that a service's image is built on; made when it is missing"
    )
    base.add_argument("name", metavar="service")
    logs = verbs.add_parser("logs", help="last lines of the logs")
    logs.add_argument(
        "name", nargs="?", default="", help="one of them, such as provision, registry, console"
    )
    person = verbs.add_parser(
        "sign-in", help="print an access token: of `make dev` where it runs, else of `make up`"
    )
    person.add_argument("email", nargs="?", default="ann@example.com")
    person.add_argument("--up", action="store_true", help="of `make up`, although `make dev` runs")
    cloud = verbs.add_parser(
        "clouds", help="registry, Postgres, stand-ins for Supabase Auth and OpenAI"
    )
    cloud.add_argument("action", choices=["start", "stop", "status"])
    cloud.add_argument("name", nargs="?", choices=list(clouds.CLOUDS), help="only this one")
    return main


def status(settings: Settings) -> int:
    """Say what runs; exit code 1 when the droplet does not."""
    pid = machine.running_pid(settings)
    about = machine.state(settings)
    if pid:
        minutes = (time.time() - about.get("started", time.time())) / 60
        print(
            f"droplet   runs: {about.get('image')}, {about.get('acceleration')}, pid {pid}, up {minutes:.0f} min"
        )
        print(f"          ssh 127.0.0.1:{settings.ports['ssh']} (make ssh)")
        print(f"          https://api.cimt.localhost:{settings.ports['https']}/healthz")
    else:
        print(f"droplet   {'is off' if about else 'does not exist'}. Next: make up")
    for one in settings.of_each_node()[1:]:
        running = machine.running_pid(one)
        print(f"{one.name} {f'runs: pid {running}' if running else 'is off. Next: make up'}")
    for name in clouds.CLOUDS:
        running = clouds.running_pid(settings, name)
        where = f"runs: 127.0.0.1:{settings.ports[name]}, pid {running}" if running else "is off"
        print(f"{name:<9} {where}")
    try:
        timings = json.loads((settings.logs / "timings.json").read_text())
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.items())
        print(f"last up   {stages}")
    except (OSError, ValueError):
        pass  # there was none
    return 0 if pid else 1


def logs(settings: Settings, name: str) -> int:
    """Last lines of every log, or of one."""
    files = {path.stem: path for path in settings.logs.glob("*.log")}
    files |= {path.stem: path for path in settings.clouds.glob("*.log")}
    files["console"] = settings.droplet / "console.log"
    files = {key: path for key, path in files.items() if path.exists()}
    if name and name not in files:
        raise LocalError(
            f"there is no log '{name}'. Logs: {', '.join(sorted(files)) or 'none yet'}"
        )
    for key, path in sorted(files.items()):
        if name in ("", key):
            print(f"== {key} ({os.path.relpath(path)})")
            lines = path.read_text(errors="replace").splitlines()
            print("\n".join(lines[-(200 if name else 8) :]))
    return 0


def down(settings: Settings) -> int:
    """Remove all that `up` made, but for caches and the chosen ports."""
    for name in clouds.CLOUDS:
        clouds.stop(settings, name)
    there = machine.destroy(settings)
    for path in (settings.clouds, settings.logs, settings.state / "build"):
        if path.exists():
            shutil.rmtree(path)
    for secret in ("panel-password", "ingest-key"):
        (settings.state / secret).unlink(missing_ok=True)
    print(f"down: {'droplet and clouds removed' if there else 'there was no droplet'}. ", end="")
    print(f"Kept: ports in .local/ports.json, images in {settings.cache}")
    return 0


def of_node(settings: Settings, number: int) -> Settings:
    """The settings about one node. Raises LocalError when there is none of that number."""
    for one in settings.of_each_node():
        if one.node == number:
            return one
    raise LocalError(f"there is no node {number}. Next: make down, then NODES=2 make up")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Exit code of one verb."""
    verb = arguments.verb
    one = getattr(arguments, "name", None)
    chosen = [one] if verb == "clouds" and one else list(clouds.CLOUDS)
    if verb == "up":
        return up.main(settings)
    if verb == "dev":
        return dev.main(settings)
    if verb == "sign-in":
        port = 0 if arguments.up else dev.supabase_port(settings)
        port = port or settings.ports["supabase"]
        print(sign_in(f"http://127.0.0.1:{port}", arguments.email))
    if verb == "image":
        print(f"image: {image.ensure(settings)}")
    if verb == "port":
        print(settings.ports[arguments.name])
    if verb == "base":
        make = n8n.image if arguments.name == "n8n" else base_image.ensure
        print(make(settings))
    if verb == "droplet":
        machine.start(of_node(settings, arguments.node))
    if verb == "start":
        for each in settings.of_each_node():
            machine.start(each)
    if verb == "start" or (verb == "clouds" and arguments.action == "start"):
        for name in chosen:
            if one or not clouds.CLOUDS[name].asked:
                clouds.start(settings, name)
    if verb == "stop" or (verb == "clouds" and arguments.action == "stop"):
        for name in chosen:
            clouds.stop(settings, name)
    if verb == "stop":
        for each in settings.of_each_node():
            print(f"{each.name}: {'off' if machine.stop(each) else 'was off'}")
    if verb == "status" or (verb == "clouds" and arguments.action == "status"):
        return status(settings)
    if verb == "logs":
        return logs(settings, arguments.name)
    if verb == "down":
        return down(settings)
    if verb == "ssh":
        node = of_node(settings, arguments.node)
        if not machine.running_pid(node):
            raise LocalError(f"the {node.name} is off. Next: make up")
        command = machine.ssh_command(node, *arguments.command)
        os.execvp(command[0], command)  # noqa: S606
    return 0


def main() -> int:
    """Parse, run, and turn an expected error into one line."""
    arguments = parser().parse_args()
    try:
        settings = load()
        # What runs keeps its ports, whatever the environment says now.
        if machine.running_pid(settings) or any(
            clouds.running_pid(settings, name) for name in clouds.CLOUDS
        ):
            settings = load(running=True)
        return run(arguments, settings)
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
