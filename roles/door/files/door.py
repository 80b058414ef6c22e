"""What the pipeline's key may do on this host: release, converge apps and workflows, show the ledger, be audited.

The key of GitHub's environment `production` opens an account whose every connection ends here, as root, whatever it
asks for. A request is one JSON object on stdin: `do` names what shall be done, `with` has its arguments, `door` is the
SHA-256 of this program in the caller's checkout. The answer is one JSON object on stdout, as a module of Ansible gives
it. What a request may not say stands in /etc/cimt/door.json (or the file that is named, which sudo lets nobody do),
which only the host's own key can change; every request and every refusal is a line of the journal
(`journalctl --identifier=cimt-door`).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import pkgutil
import posixpath
import re
import runpy
import stat
import subprocess
import sys
import syslog
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

SETTINGS = "/etc/cimt/door.json"
LIMIT = 4 * 2**20  # bytes of a request
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
UNIT = re.compile(r"[A-Za-z0-9@_.-]+")
CERTIFICATE = re.compile(
    r"|/etc/easypanel/traefik/[\w-]+\.crt"
)  # public parts, of the panel's proxy
LINES = 15  # of a log
# What a caller may say to each module. All else is the host's, and has to be said alike or not at all.
FREE = {
    "easypanel_apps": {
        *("apps", "secret_env", "secret_files", "builds", "registry_username", "registry_password"),
        *("who", "lock_wait", "newer", "placement"),
    },
    "easypanel_release": {
        *("action", "service", "app", "secret_env", "secret_files", "image", "drop", "gate_waived"),
        *("reason", "newer", "revision", "migration", "contracts", "accept", "health_url"),
        *("ca_file", "registry_username", "registry_password", "who", "timeout"),
        *("revision_timeout", "lock_wait", "min_free_mb", "entries"),
    },
    "n8n_workflows": {
        *("state", "workflows", "settings", "credentials", "secrets", "encryption_key"),
        *("owner_email", "owner_password", "who", "timeout"),
    },
}


class Refused(Exception):
    """Not through this door; the text says why."""


def note(text: str) -> None:
    """One line of the journal, whatever a caller has put into it."""
    syslog.syslog(
        syslog.LOG_NOTICE, "".join(one if one.isprintable() else "?" for one in text)[:500]
    )


def program() -> str:
    """The SHA-256 of this program."""
    return hashlib.sha256(Path(sys.argv[0]).read_bytes()).hexdigest()


def listed(app: dict[str, Any], what: str) -> list[Any] | dict[str, Any]:
    """What an app has of something. Raises TypeError for what is neither a list nor an object."""
    found = app.get(what) or []
    if not isinstance(found, (list, dict)):
        raise TypeError(what)
    return found


def unfit(app: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    """What an app may not have: more of the host than its own volumes."""
    name = str(app.get("name", ""))
    if not NAME.fullmatch(name):
        yield f"an app that is called {name!r}"
    allowed = settings["apps"].get(name, {})
    for mount in listed(app, "mounts"):
        path = str(mount.get("mountPath", ""))
        if not path.startswith("/") or posixpath.normpath(path) != path:
            yield f"{name}: a mount at {path!r}"
        kind = mount.get("type")
        if kind == "bind" and mount.get("hostPath") in allowed.get("binds", []):
            continue
        if kind == "bind":
            yield f"{name}: {mount.get('hostPath')!r} of the host"
        elif kind == "volume" and not NAME.fullmatch(str(mount.get("name", ""))):
            yield f"{name}: a volume that is called {mount.get('name')!r}"
        elif kind not in ("volume", "file"):
            yield f"{name}: a mount of kind {kind!r}"
    for what in ("cap_add", "groups", "sysctls", "ports"):
        for one in listed(app, what):
            if one not in allowed.get(what, []):
                yield f"{name}: {what} {json.dumps(one)}"


def arguments(what: str, given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a module: the caller's, where he may choose, and the host's. Raises Refused."""
    fixed: dict[str, Any] = settings["fixed"][what]
    if what == "easypanel_release":
        service = str(given.get("service", ""))
        fixed = fixed | {"gate": settings["gates"].get(service, "")}
    others = sorted(
        name for name in given if name not in FREE[what] and given[name] != fixed.get(name)
    )
    if others:
        raise Refused(f"{', '.join(others)} of {what} is said on the host, and otherwise there")
    try:
        apps = [*given.get("apps", []), *filter(None, [given.get("app")])]
        found = [problem for app in apps for problem in unfit(app, settings)]
    except (AttributeError, TypeError):  # a text that is read as one later on
        raise Refused("an app is an object, with lists of objects in it") from None
    if (service := given.get("service")) is not None:
        names = [str(service), *(str(app.get("name")) for app in apps)]
        found += [f"an app that is called {one!r}" for one in names if not NAME.fullmatch(one)]
        if len(set(names)) > 1:
            found.append(f"another app's settings ({', '.join(names)})")
    if found:
        raise Refused(
            f"no app may have {'; '.join(dict.fromkeys(found))}. Next: name it in door_apps, and make provision"
        )
    return {**{name: given[name] for name in given if name in FREE[what]}, **fixed}


def run_module(what: str, given: dict[str, Any], mode: dict[str, Any]) -> NoReturn:
    """Run a module; it answers for itself, and ends this process."""
    from ansible.module_utils.testing import patch_module_args

    with patch_module_args({**given, **mode}):
        importlib.import_module(f"modules.{what}").main()
    raise AssertionError("a module ends by itself")


def public(path: str) -> bool:
    """Whether anybody on this host may read that file."""
    try:
        place = Path(path)
        status = place.lstat()
        ways = [parent.stat().st_mode & stat.S_IXOTH for parent in place.parents]
        readable = stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH
        return bool(readable and all(ways)) and place.resolve() == place
    except OSError:
        return False


def audit(given: dict[str, Any], settings: dict[str, Any]) -> None:
    """Print what the audit asks for; no file is shown that is not everybody's, or named by the host itself."""
    files = {
        path: bool(content) and (path in settings["readable"] or public(path))
        for path, content in given.get("files", {}).items()
    }
    # Of nothing but this program: a digest tells whether a guess is right.
    given = given | {"files": files, "digests": [sys.argv[0]]}
    if not CERTIFICATE.fullmatch(str(given.get("ca_file", ""))):
        raise Refused("ca_file is no certificate of the panel's proxy")
    sys.stdin = io.StringIO(json.dumps(given | settings["fixed"]["audit"]))
    runpy.run_module("collect", run_name="__main__")


def checklist() -> None:
    """Print what each command of the product's checklist says here: [exit code, output], as they were packed."""
    commands = json.loads(pkgutil.get_data("modules", "checklist.json") or b"[]")
    answers = []
    for command in commands:
        shell = ["timeout", "60", "bash", "-c", command]
        done = subprocess.run(
            shell, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        answers.append([done.returncode, done.stdout.decode(errors="replace").strip()])
    print(json.dumps(answers))


def last_lines(given: dict[str, Any]) -> None:
    """Print the last lines of a unit, or of an app's service."""
    name = str(given.get("name", ""))
    if not UNIT.fullmatch(name) or name.startswith("-"):
        raise Refused(f"logs of {name!r}")
    if "." in name:
        command = ["journalctl", "--no-pager", f"--lines={LINES}", f"--unit={name}"]
    else:
        command = ["docker", "service", "logs", "--raw", "--tail", str(LINES), name]
    sys.stdout.flush()
    os.execvp("timeout", ["timeout", "20", *command])  # noqa: S606 - no shell is what is wanted


def main() -> int:
    """Serve one request; the exit code is that of what was done."""
    syslog.openlog("cimt-door", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    what = "nothing"
    try:
        if asked := os.environ.get("SSH_ORIGINAL_COMMAND", "cimt-door").removeprefix("cimt-door"):
            what = "a command"
            raise Refused(f"{asked.strip()!r} is no request")
        settings = json.loads(Path((*sys.argv[1:], SETTINGS)[0]).read_text())
        text = sys.stdin.read(LIMIT + 1)
        if len(text) > LIMIT:
            raise Refused(f"a request of more than {LIMIT} bytes")
        try:
            request = json.loads(text)
            what, given = str(request["do"]), dict(request.get("with") or {})
        except (ValueError, LookupError, TypeError):
            raise Refused("that is no request") from None
        if what == "hello":
            told = {"door": program(), "time": time.time()}
            print(json.dumps(told | {"system": Path("/etc/os-release").read_text()}))
            return 0
        # Going back, and the ledger, are as this host has always done them: an alarm waits for no reviewer.
        known = what == "easypanel_release" and given.get("action") in ("rollback", "history")
        if request.get("door") != program() and not known:
            raise Refused(
                "the host's program is of another revision than this checkout. Next: Operate → provision, which a "
                "reviewer approves; then this again"
            )
        note(
            f"{given.get('who', 'somebody')} asks for {what}{' (check)' if request.get('check') else ''}"
        )
        if what == "audit":
            audit(given, settings)
        elif what == "checklist":
            checklist()
        elif what == "logs":
            last_lines(given)
        elif what in FREE:
            mode = {"_ansible_check_mode": bool(request.get("check"))}
            mode["_ansible_diff"] = bool(request.get("diff"))
            run_module(what, arguments(what, given, settings), mode)
        else:
            raise Refused(f"{what!r} is nothing that can be asked for")
    except Refused as reason:
        note(f"refused: {what}: {reason}")
        print(json.dumps({"failed": True, "msg": f"door: refused: {reason}"}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
