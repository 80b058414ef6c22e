"""Ansible module: one release of one app, from the lock to the ledger, in one process on the droplet.

One process, because then the kernel frees the lock when it dies, and a controller that goes away in the
middle does not leave a release half done: this process finishes it and writes the ledger.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import time
import urllib.parse
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.easypanel import (
    Locked,
    Panel,
    PanelError,
    host_lock,
    open_panel,
    write_file,
)

DOCUMENTATION = r"""
module: easypanel_release
short_description: Release an image digest of a panel app, verified, or restore the previous one and fail
description:
  - Locks the host, sets the digest in the panel, fires the deploy hook and waits for the truth.
  - The truth is the panel's action, a fresh and completed Swarm update of the wanted digest, and the wanted
    revision at the health address three times in a row.
  - When it does not come, the previous digest is put back by the same path and the module fails.
  - Every release is one line in an append-only ledger.
options:
  action: {type: str, default: deploy, choices: [deploy, rollback, history], description: What to do.}
  project: {type: str, required: true, description: Panel project.}
  service: {type: str, required: true, description: App in the project.}
  image: {type: str, default: "", description: "What to release, as name@sha256:digest; a rollback needs none."}
  revision: {type: str, default: "", description: Git revision that the health address must report.}
  migration: {type: str, default: "", description: Newest migration that the caller knows; for the ledger.}
  contracts: {type: dict, default: {}, description: "Migrations that take away, each with what; for a rollback."}
  accept: {type: str, default: "", description: "Those the earlier release does without; comma-separated."}
  health_url: {type: str, required: true, description: Public health address of the app.}
  connect_address: {type: str, default: 127.0.0.1, description: Where to connect for it; the droplet's own proxy.}
  ca_file: {type: str, default: "", description: CA of the proxy's certificate; empty for the system's.}
  registry_username: {type: str, default: "", description: User that may pull the image.}
  registry_password: {type: str, default: "", description: Its password or token.}
  url: {type: str, required: true, description: Where the panel answers on this host.}
  token_file: {type: path, required: true, description: File with the panel's API token.}
  state_directory: {type: path, required: true, description: Holds lock and ledger.}
  who: {type: str, required: true, description: Who releases; shown to others and kept in the ledger.}
  timeout: {type: int, default: 600, description: Seconds for the release to come up.}
  revision_timeout: {type: int, default: 60, description: Seconds from the completed update to the right revision.}
  lock_wait: {type: int, default: 0, description: Seconds to wait for another release.}
  min_free_mb: {type: int, default: 1024, description: Free disk space in MB without which nothing is started.}
  entries: {type: int, default: 20, description: How many lines history gives.}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: Release
  easypanel_release:
    project: cimt
    service: api
    image: ghcr.io/example/api@sha256:0000000000000000000000000000000000000000000000000000000000000000
    revision: 0000000000000000000000000000000000000000
    health_url: https://api.example.com/healthz
    url: http://127.0.0.1:3000
    token_file: /etc/cimt/easypanel.token
    state_directory: /var/lib/cimt
    who: ops
"""

RETURN = r"""
timeline: {type: list, elements: str, returned: always, description: What happened when, in seconds from the start.}
entries: {type: list, elements: dict, returned: for history, description: "Entries of the ledger, oldest first."}
ledger: {type: list, elements: str, returned: for history, description: The same for people.}
"""

IMAGE = re.compile(r"[^@\s]+@(?P<digest>sha256:[0-9a-f]{64})")
REVISION = re.compile(r"[0-9a-f]{40}(-dirty-[0-9a-f]{8})?")
STEADY = 3  # right answers in a row: the old container may still answer once or twice
POLL = 2  # seconds between two looks
FAILED_UPDATES = {"paused", "rollback_started", "rollback_paused", "rollback_completed"}


def refusal(
    target: dict[str, Any],
    entries: list[dict[str, Any]],
    migration: str,
    contracts: dict[str, str],
    accept: str,
) -> str:
    """Why it is not safe to go back to the ledger's entry ``target``; empty when it is.

    ``contracts`` are the migrations that take something away, ``{"<14 digits>_<name>": "what"}``, ``migration``
    is the newest number of the same checkout. An entry from before these were kept counts as older than all.
    """
    newest = max(str(entry.get("migration", "")) for entry in entries)
    if newest > migration:
        return (
            f"the last releases knew the database up to migration {newest}, this checkout only up to "
            f"{migration or 'none'}: whether the way back is open cannot be seen from here. Next: git pull"
        )
    accepted = {name.strip() for name in accept.split(",")}
    lost = {
        name: what
        for name, what in sorted(contracts.items())
        if name[:14] > str(target.get("migration", "")) and name not in accepted
    }
    if not lost:
        return ""
    listed = "; ".join(f"{name}: {what}" for name, what in lost.items())
    names = ",".join(sorted(lost.keys() | accepted - {""}))
    return (
        f"the release of {target['time']} (revision {target['revision'][:12]}) may need what later migrations took "
        f"away. {listed}. Next: go forward with a fix; or, when that release does without it, "
        f"make rollback ACCEPT={names}"
    )


class Failed(Exception):
    """The release did not come up; the text is the reason."""


class Release:
    """One release of ``service``; methods run in the order of the design's §3."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.docker = module.get_bin_path("docker", required=True)
        self.swarm_name = f"{self.params['project']}_{self.params['service']}"
        self.key = {"projectName": self.params["project"], "serviceName": self.params["service"]}
        self.state = pathlib.Path(self.params["state_directory"])
        self.ledger = self.state / "releases.jsonl"
        self.inflight = self.state / f"{self.params['service']}.inflight.json"
        self.started = time.monotonic()
        self.timeline: list[str] = []
        self.migration: str = self.params["migration"]
        self.panel: Panel

    # -- what is --------------------------------------------------------------

    def say(self, text: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append(f"{time.monotonic() - self.started:6.1f} s  {text}")

    def entries(self) -> list[dict[str, Any]]:
        """The ledger's lines, oldest first; a line cut short by a full disk is passed over."""
        if not self.ledger.exists():
            return []
        result = []
        for line in self.ledger.read_text().splitlines():
            with contextlib.suppress(ValueError):
                result.append(json.loads(line))
        return result

    def inspect(self) -> dict[str, Any]:
        """The app as the panel has it."""
        try:
            return dict(self.panel.read("inspectAppService", **self.key))
        except PanelError as error:
            if error.status in (400, 404):
                raise PanelError(
                    "inspectAppService",
                    error.status,
                    f"the panel has no app '{self.params['service']}' in project "
                    f"'{self.params['project']}'; next: make provision",
                ) from None
            raise

    def swarm(self) -> dict[str, Any]:
        """The Swarm service: ``{"image", "update": {...}, "replicas"}``; empty when there is none."""
        code, out, _ = self.module.run_command([self.docker, "service", "inspect", self.swarm_name])
        if code != 0:
            return {}
        service = json.loads(out)[0]
        return {
            "image": service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"],
            "replicas": service["Spec"]["Mode"].get("Replicated", {}).get("Replicas", 1),
            "update": service.get("UpdateStatus") or {},
        }

    def tasks(self) -> list[dict[str, str]]:
        """The service's tasks, newest first, as docker shows them."""
        code, out, _ = self.module.run_command(
            [self.docker, "service", "ps", self.swarm_name, "--no-trunc", "--format", "{{json .}}"]
        )
        return [json.loads(line) for line in out.splitlines()] if code == 0 else []

    def surplus(self, digest: str) -> int | None:
        """Tasks of this digest that run beyond the wanted number; None when too few or others run."""
        swarm = self.swarm()
        wanted = [task for task in self.tasks() if task["DesiredState"] == "Running"]
        running = [
            task
            for task in wanted
            if digest in task["Image"] and task["CurrentState"].startswith("Running")
        ]
        if not swarm or digest not in swarm["image"] or len(running) != len(wanted):
            return None
        return len(running) - swarm["replicas"] if len(running) >= swarm["replicas"] else None

    def runs(self, digest: str) -> bool:
        """Whether at least as many tasks of this digest run as are wanted, and none of another."""
        return self.surplus(digest) is not None

    def health(self) -> str:
        """Revision that the health address reports, through the proxy; raises OSError or ValueError."""
        url = urllib.parse.urlsplit(self.params["health_url"])
        host = str(url.hostname)
        port = 443 if url.scheme == "https" else 80
        raw = socket.create_connection((self.params["connect_address"], port), timeout=30)
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.sock = raw
        with contextlib.closing(connection):
            if url.scheme == "https":
                context = ssl.create_default_context(cafile=self.params["ca_file"] or None)
                connection.sock = context.wrap_socket(raw, server_hostname=host)
            connection.request(
                "GET", url.path or "/", headers={"Host": host, "Connection": "close"}
            )
            response = connection.getresponse()
            body = response.read(65536)
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}")
        return str(json.loads(body)["revision"])

    def health_or_reason(self) -> tuple[str | None, str]:
        """``(revision, "")`` or ``(None, why there is none)``."""
        try:
            return self.health(), ""
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            return None, f"{self.params['health_url']} answers: {error or type(error).__name__}"

    # -- what changes ---------------------------------------------------------

    def set_image(self, image: str) -> None:
        """Put ``image`` into the panel and read it back; the panel drops what it does not know."""
        body = {"image": image}
        if self.params["registry_username"]:
            body["username"] = self.params["registry_username"]
            body["password"] = self.params["registry_password"]
        self.panel.write("updateAppSourceImage", **self.key, **body)
        kept = (self.inspect().get("source") or {}).get("image")
        if kept != image:
            raise PanelError("updateAppSourceImage", 200, f"the panel kept {kept}, not {image}")
        self.say(f"panel set to {image}")

    def actions(self) -> list[dict[str, Any]]:
        """The app's latest deploys, newest first."""
        actions = self.panel.read("listActions", type="deployment", **self.key)
        return sorted(actions, key=lambda action: action["createdAt"], reverse=True)

    def fire_and_watch(self, image: str, revision: str | None) -> None:
        """Fire the hook and return when ``image`` is live; raises Failed with the reason.

        ``revision`` None: any healthy answer will do (what ran before was never asked).
        """
        match = IMAGE.fullmatch(image)
        digest = match["digest"] if match else image
        before = self.swarm()
        known_actions = {action["id"] for action in self.actions()}
        self.panel.fire_hook(str(self.inspect()["token"]))
        self.say("deploy hook fired")
        deadline = time.monotonic() + self.params["timeout"]
        completed_at: float | None = None
        steady, seen = 0, "nothing yet"
        action_done = False
        while time.monotonic() < deadline:
            if not action_done:
                action = next((a for a in self.actions() if a["id"] not in known_actions), None)
                if action and action["status"] == "error":
                    log = str(self.panel.read("getAction", id=str(action["id"])).get("log") or "")
                    *said, verdict = log.strip().splitlines()[-20:] or ["no log"]
                    said = [*said, self.last_words()]
                    raise Failed("\n".join([f"the panel's deploy failed: {verdict}", *said]))
                if action and action["status"] == "done":
                    action_done = True
                    self.say("panel: deploy done")
                elif action:
                    self._raise_if_update_failed(before)
            if action_done and completed_at is None:
                self._raise_if_update_failed(before)
                if self._updated(before, digest):
                    completed_at = time.monotonic()
                    self.say("swarm: update completed, wanted digest runs")
            if completed_at is not None:
                reported, problem = self.health_or_reason()
                right = reported is not None and revision in (None, reported)
                steady = steady + 1 if right else 0
                seen = problem or f"revision {reported}"
                if steady >= STEADY:
                    self.say(f"health: {seen}, {STEADY} times in a row")
                    return
                if not right and time.monotonic() - completed_at > self.params["revision_timeout"]:
                    raise Failed(
                        f"the new container runs, but reports {seen}; wanted revision {revision}"
                    )
            time.sleep(0.5 if steady else POLL)
        raise Failed(
            f"not live after {self.params['timeout']} s; last seen: {seen}\n{self.last_words()}"
        )

    def _updated(self, before: dict[str, Any], digest: str) -> bool:
        if not self.runs(digest):
            return False
        update = self.swarm()["update"]
        if not before:
            return True  # the service was created: Swarm reports no update
        fresh = update.get("StartedAt") != before["update"].get("StartedAt")
        return fresh and update.get("State") == "completed"

    def _raise_if_update_failed(self, before: dict[str, Any]) -> None:
        update = self.swarm().get("update", {})
        fresh = update.get("StartedAt") != before.get("update", {}).get("StartedAt")
        if fresh and update.get("State") in FAILED_UPDATES:
            raise Failed(
                f"swarm: update {update['State']}: {update.get('Message', '')}\n{self.last_words()}"
            )

    def last_words(self) -> str:
        """Errors of the newest tasks and the app's last log lines."""
        errors: list[str] = []
        for _ in range(
            10
        ):  # Swarm writes a task's error when its container has ended, a moment later
            errors = [
                f"task {task['ID'][:12]}: {task['CurrentState']} {task['Error']}".rstrip()
                for task in self.tasks()[:4]
                if task["Error"]
            ]
            if errors:
                break
            time.sleep(1)
        # A task that cannot be reached would keep `docker service logs` waiting.
        _, out, err = self.module.run_command(
            [
                "timeout",
                "20",
                self.docker,
                "service",
                "logs",
                "--raw",
                "--tail",
                "15",
                self.swarm_name,
            ]
        )
        return "\n".join([*errors, *(line[:300] for line in (out + err).splitlines()[-15:])])

    def restore(self, image: str, revision: str | None) -> None:
        """Put the previous digest back; a deploy is only needed where Swarm has left it."""
        self.set_image(image)
        match = IMAGE.fullmatch(image)
        if match and self.runs(match["digest"]):
            reported, problem = self.health_or_reason()
            if reported is None or revision not in (None, reported):
                raise Failed(problem or f"revision {reported} answers, wanted {revision}")
            self.say(f"previous digest never stopped running ({reported})")
            return
        self.fire_and_watch(image, revision)
        if match and self.surplus(match["digest"]):
            # Swarm restarted the broken task while it was being replaced: the next update clears its slot.
            self.say("swarm runs one task too many; the same digest once more")
            self.fire_and_watch(image, revision)
        self.say("previous digest is back")

    # -- the whole ------------------------------------------------------------

    def run(self) -> None:
        """Lock, release or restore, ledger."""
        params = self.params
        if params["action"] == "history":
            entries = self.entries()[-params["entries"] :]
            self.module.exit_json(
                changed=False,
                timeline=[],
                entries=entries,
                ledger=[shown(entry) for entry in entries],
            )
        if params["action"] == "deploy":
            self._check_image(params["image"], params["revision"])
        if self.module.check_mode:
            self.panel = open_panel(params["url"], params["token_file"])
            image, _ = self._target()
            now = (self.inspect().get("source") or {}).get("image") or "nothing"
            self.module.exit_json(
                changed=now != image,
                timeline=[],
                diff={
                    "before": f"{params['service']}: {now}\n",
                    "after": f"{params['service']}: {image}\n",
                },
            )
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the controller may go away
        what = f"{params['action']} of {params['service']} {params['image']}".strip()
        with host_lock(str(self.state / "release.lock"), params["who"], what, params["lock_wait"]):
            self._locked()

    def _check_image(self, image: str, revision: str) -> None:
        if not IMAGE.fullmatch(image):
            self.module.fail_json(
                msg=f"image '{image}' is not name@sha256:<64 hex>: a release names a digest, never a tag. "
                "Next: make build prints it"
            )
        if not REVISION.fullmatch(revision):
            self.module.fail_json(
                msg=f"revision '{revision}' is not a full git revision. Next: git rev-parse HEAD"
            )

    def _target(self) -> tuple[str, str]:
        """Image and revision to release."""
        if self.params["action"] == "deploy" or self.params["image"]:
            return self.params["image"], self.params["revision"]
        live = [
            entry
            for entry in self.entries()
            if entry["result"] == "live" and entry["service"] == self.params["service"]
        ]
        earlier = [entry for entry in live if entry["to"] != live[-1]["to"]]
        if not earlier:
            self.module.fail_json(
                msg=f"the ledger knows no release of {self.params['service']} before the current one. "
                "Next: make history, or make deploy IMAGE=… REVISION=…"
            )
        target = earlier[-1]
        params = self.params
        reason = refusal(target, live, params["migration"], params["contracts"], params["accept"])
        if reason:
            self.module.fail_json(msg=f"rollback refused, nothing was changed: {reason}")
        self.migration = target.get("migration", "")
        return target["to"], target["revision"]

    def _locked(self) -> NoReturn:
        params = self.params
        free = shutil.disk_usage("/var/lib/docker").free // 2**20
        if free < params["min_free_mb"]:
            self.module.fail_json(
                msg=f"only {free} MB free on the droplet's disk, {params['min_free_mb']} MB are needed; nothing "
                "was changed. Next, on the droplet: docker image prune --all --filter until=168h"
            )
        self.panel = open_panel(params["url"], params["token_file"])
        image, revision = self._target()
        match = IMAGE.fullmatch(image)
        previous = (self.inspect().get("source") or {}).get("image") or ""
        previous_revision, _ = self.health_or_reason() if self.swarm() else (None, "")
        if self.inflight.exists():
            with contextlib.suppress(ValueError):
                left = json.loads(self.inflight.read_text())
                previous, previous_revision = left["from"], left["from_revision"]
                self.say(
                    f"an earlier release by {left['who']} was cut short; it started from {previous}"
                )
        elif (
            previous == image
            and match
            and self.runs(match["digest"])
            and previous_revision == revision
        ):
            self.module.exit_json(
                changed=False,
                timeline=[f"{params['service']} already runs {image}, revision {revision}"],
            )
        self.say(f"{params['action']} {params['service']}: {previous or 'nothing'} -> {image}")
        note = {"from": previous, "from_revision": previous_revision, "who": params["who"]}
        write_file(str(self.inflight), json.dumps(note))
        try:
            self.set_image(image)
            self.fire_and_watch(image, revision)
        except (Failed, PanelError) as error:
            self._fail(image, revision, previous, previous_revision, str(error))
        self._record(previous, image, revision, "live", "")
        self.inflight.unlink(missing_ok=True)
        self.say("live")
        self.module.exit_json(changed=True, timeline=self.timeline)

    def _fail(
        self, image: str, revision: str, previous: str, previous_revision: str | None, reason: str
    ) -> NoReturn:
        self.say(f"failed: {reason.splitlines()[0]}")
        if not previous:
            result, fate = "failed", "there was no release before it, so nothing could be put back"
        else:
            try:
                self.restore(previous, previous_revision)
                result, fate = "failed, restored", f"{previous} is back and answers"
            except (Failed, PanelError) as error:
                self.say(f"restore failed: {error}")
                result = "failed, NOT restored"
                fate = f"AND {previous} COULD NOT BE PUT BACK: {error}"
        self._record(previous, image, revision, result, reason)
        if result != "failed, NOT restored":
            self.inflight.unlink(missing_ok=True)
        steps = "\n".join(self.timeline)
        self.module.fail_json(
            msg=f"{self.params['action']} of {self.params['service']} failed; {fate}.\n"
            f"wanted: {image} (revision {revision})\nreason: {reason}\n{steps}\n"
            "Next: fix the image and release again; make history shows what ran when",
            timeline=self.timeline,
        )

    def _record(self, before: str, image: str, revision: str, result: str, reason: str) -> None:
        """Append one line to the ledger, on disk before this returns."""
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "who": self.params["who"],
            "action": self.params["action"],
            "service": self.params["service"],
            "from": before,
            "to": image,
            "revision": revision,
            "migration": self.migration,
            "result": result,
            "seconds": round(time.monotonic() - self.started, 1),
            "reason": (reason.splitlines() or [""])[0][:300],
        }
        with open(self.ledger, "a") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def shown(entry: dict[str, Any]) -> str:
    """A ledger entry on one line, for people."""
    before, after = (
        image.rpartition("@sha256:")[2][:12] or "nothing" for image in (entry["from"], entry["to"])
    )
    reason = f"  ({entry['reason']})" if entry["reason"] else ""
    return (
        f"{entry['time']}  {entry['who']:<12} {entry['action']:<8} {entry['service']:<8} {before} -> {after}  "
        f"{entry['revision'][:12]}  {entry['result']}  {entry['seconds']} s{reason}"
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str",
                "default": "deploy",
                "choices": ["deploy", "rollback", "history"],
            },
            "project": {"type": "str", "required": True},
            "service": {"type": "str", "required": True},
            "image": {"type": "str", "default": ""},
            "revision": {"type": "str", "default": ""},
            "migration": {"type": "str", "default": ""},
            "contracts": {"type": "dict", "default": {}},
            "accept": {"type": "str", "default": ""},
            "health_url": {"type": "str", "required": True},
            "connect_address": {"type": "str", "default": "127.0.0.1"},
            "ca_file": {"type": "str", "default": ""},
            "registry_username": {"type": "str", "default": ""},
            "registry_password": {"type": "str", "default": "", "no_log": True},
            "url": {"type": "str", "required": True},
            "token_file": {"type": "path", "required": True, "no_log": False},
            "state_directory": {"type": "path", "required": True},
            "who": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 600},
            "revision_timeout": {"type": "int", "default": 60},
            "lock_wait": {"type": "int", "default": 0},
            "min_free_mb": {"type": "int", "default": 1024},
            "entries": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    try:
        Release(module).run()
    except Locked as error:
        module.fail_json(
            msg=f"{error}. Next: wait until it is done, or give this one time to wait: -e release_lock_wait=900"
        )
    except PanelError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error}. Next, on the droplet: df -h; a full disk is the usual reason"
        )


if __name__ == "__main__":
    main()
