"""Ansible module: one release of one app, from the lock to the ledger, in one process on the droplet.

One process, because then the kernel frees the lock when it dies, and a controller that goes away in the
middle does not leave a release half done: this process finishes it and writes the ledger.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
import signal
import time
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.easypanel import (
    LOCK_ARGUMENTS,
    PANEL_ARGUMENTS,
    Panel,
    PanelError,
    failures,
    host_lock,
    open_panel,
    write_file,
)
from ansible.module_utils.release_ledger import Ledger, overtaken, ran_before, refusal, shown
from ansible.module_utils.swarm_service import EngineError, HealthAddress, SwarmService

DOCUMENTATION = r"""
module: easypanel_release
short_description: Release an image digest of a panel app, verified, or restore the previous one and fail
description:
  - Locks the host, sets the digest in the panel, fires the deploy hook and waits for the truth.
  - The truth is the panel's action, a fresh and completed Swarm update of the wanted digest, and the wanted
    revision at the health address three times in a row.
  - When it does not come, the previous digest is put back by the same path and the module fails.
  - Every release is one line in an append-only ledger.
  - An undo takes back a release that came up and proved bad afterwards, if it is still what serves.
options:
  action: {type: str, default: deploy, choices: [deploy, rollback, undo, history], description: What to do.}
  project: {type: str, required: true, description: Panel project.}
  service: {type: str, required: true, description: App in the project.}
  image: {type: str, default: "", description: "What to release or undo, as name@sha256:digest; a rollback needs none."}
  reason: {type: str, default: "", description: Why a release is undone; kept in the ledger.}
  newer: {type: list, elements: str, default: [], description: Revisions that a deploy must not replace.}
  revision: {type: str, default: "", description: Git revision that the health address must report.}
  migration: {type: str, default: "", description: Newest migration that the caller knows; for the ledger.}
  contracts: {type: dict, default: {}, description: "Migrations that take away, each with what; for what ran before."}
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
switched: {type: bool, returned: success, description: Whether another image serves than before.}
image: {type: str, returned: when another image serves, description: That image.}
fate: {type: str, returned: for undo, description: What serves now, or why nothing was put back.}
locked: {type: bool, returned: when another run holds the lock, description: Always true.}
timeline: {type: list, elements: str, returned: always, description: What happened when, in seconds from the start.}
entries: {type: list, elements: dict, returned: for history, description: "Entries of the ledger, oldest first."}
ledger: {type: list, elements: str, returned: for history, description: The same for people.}
"""

IMAGE = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
REVISION = re.compile(r"[0-9a-f]{40}(-dirty-[0-9a-f]{8})?")
STEADY = 3  # right answers in a row: the old container may still answer once or twice
POLL = 2  # seconds between two looks


def digest_of(image: str) -> str:
    """The part by which Swarm knows an image: its digest; all of a name that has none."""
    return image.rpartition("@")[2]


class Failed(Exception):
    """The release did not come up; the text is the reason."""


class Release:
    """One release of ``service``; methods run in the order of the design's §3."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        docker = module.get_bin_path("docker", required=True)
        name = f"{self.params['project']}_{self.params['service']}"
        self.swarm = SwarmService(module.run_command, docker, name)
        self.health = HealthAddress(
            self.params["health_url"], self.params["connect_address"], self.params["ca_file"]
        )
        self.key = {"projectName": self.params["project"], "serviceName": self.params["service"]}
        self.state = pathlib.Path(self.params["state_directory"])
        self.ledger = Ledger(self.state / "releases.jsonl")
        self.inflight = self.state / f"{self.params['service']}.inflight.json"
        self.started = time.monotonic()
        self.timeline: list[str] = []
        self.migration: str = self.params["migration"]
        self.panel: Panel

    # -- what is --------------------------------------------------------------

    def say(self, text: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append(f"{time.monotonic() - self.started:6.1f} s  {text}")

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
        digest = digest_of(image)
        before = self.swarm.state()
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
                    said = [*said, self.swarm.last_words()]
                    raise Failed("\n".join([f"the panel's deploy failed: {verdict}", *said]))
                if action and action["status"] == "done":
                    action_done = True
                    self.say("panel: deploy done")
                elif action and (failure := self.swarm.failure(before)):
                    raise Failed(failure)
            if action_done and completed_at is None:
                if failure := self.swarm.failure(before):
                    raise Failed(failure)
                if self.swarm.updated(before, digest):
                    completed_at = time.monotonic()
                    self.say("swarm: update completed, wanted digest runs")
            if completed_at is not None:
                reported, problem = self.health.revision_or_reason()
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
            f"not live after {self.params['timeout']} s; last seen: {seen}\n{self.swarm.last_words()}"
        )

    def restore(self, image: str, revision: str | None) -> None:
        """Put the previous digest back.

        A start-first update that failed has left the old tasks serving. Swarm's own rollback leaves them
        alone, where a deploy of the old digest would replace them; that is for where they are gone.
        """
        self.set_image(image)
        digest = digest_of(image)
        if "@" in image and self.swarm.can_roll_back(digest):
            self.swarm.roll_back()
            self.say("swarm told to take its update back")
            deadline = time.monotonic() + self.params["timeout"]
            while not self.swarm.settled(digest) and time.monotonic() < deadline:
                time.sleep(POLL)
        if "@" in image and self.swarm.settled(digest):
            reported, problem = self.health.revision_or_reason()
            if reported is None or revision not in (None, reported):
                raise Failed(problem or f"revision {reported} answers, wanted {revision}")
            self.say(f"previous digest never stopped running ({reported})")
            return
        self.fire_and_watch(image, revision)
        if "@" in image and self.swarm.surplus(digest):
            # Swarm restarted the broken task while it was being replaced: the next update clears its slot.
            self.say("swarm runs one task too many; the same digest once more")
            self.fire_and_watch(image, revision)
        self.say("previous digest is back")

    # -- the whole ------------------------------------------------------------

    def run(self) -> None:
        """Lock, release or restore, ledger."""
        params = self.params
        if params["action"] == "history":
            entries = self.ledger.entries()[-params["entries"] :]
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
        with host_lock(params["state_directory"], params["who"], what, params["lock_wait"]):
            self._undo() if params["action"] == "undo" else self._locked()

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
        """Image and revision to release; refuses a way back that later migrations have closed."""
        params = self.params
        live = self.ledger.live(params["service"])
        if reason := overtaken(live, params["newer"]):
            self.module.fail_json(msg=f"{params['action']} refused: {reason}")
        before = ran_before(live, params["image"])
        if before is None:
            if params["action"] == "deploy":
                return params["image"], params["revision"]
            self.module.fail_json(
                msg=f"the ledger knows no release of {params['service']} before the current one. "
                "Next: make history, or make deploy IMAGE=… REVISION=…"
            )
        # One that was taken back has moved the database all the same.
        came_up = [
            entry
            for entry in self.ledger.entries()
            if (entry["service"], entry["result"]) == (params["service"], "live")
        ]
        reason = refusal(
            before, came_up, params["migration"], params["contracts"], params["accept"]
        )
        if reason:
            self.module.fail_json(msg=f"{params['action']} refused, nothing was changed: {reason}")
        self.migration = before.get("migration", "")
        return before["to"], params["revision"] or before["revision"]

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
        previous = (self.inspect().get("source") or {}).get("image") or ""
        previous_revision, _ = (
            self.health.revision_or_reason() if self.swarm.state() else (None, "")
        )
        if self.inflight.exists():
            with contextlib.suppress(ValueError):
                left = json.loads(self.inflight.read_text())
                previous, previous_revision = left["from"], left["from_revision"]
                self.say(
                    f"an earlier release by {left['who']} was cut short; it started from {previous}"
                )
        elif (
            previous == image
            and self.swarm.runs(digest_of(image))
            and previous_revision == revision
        ):
            self.say(f"{params['service']} already runs {image}, revision {revision}")
            live = self.ledger.live(params["service"])
            known = bool(live) and live[-1]["to"] == image
            if not known:
                # It came up after its time limit, or by another hand: what serves is what the ledger says.
                self._record(previous, image, revision, "live", "")
                self.say("the ledger did not say so; it does now")
            self.module.exit_json(changed=not known, switched=False, timeline=self.timeline)
        self.say(f"{params['action']} {params['service']}: {previous or 'nothing'} -> {image}")
        self._note(previous, previous_revision)
        try:
            self.set_image(image)
            self.fire_and_watch(image, revision)
        except (Failed, PanelError, EngineError) as error:
            self._fail(image, revision, previous, previous_revision, str(error))
        self._record(previous, image, revision, "live", "")
        self.inflight.unlink(missing_ok=True)
        self.say("live")
        self.module.exit_json(changed=True, switched=True, image=image, timeline=self.timeline)

    def _note(self, previous: str, previous_revision: str | None) -> None:
        """Keep what serves until this has ended: a release after a crash puts that back."""
        note = {"from": previous, "from_revision": previous_revision, "who": self.params["who"]}
        write_file(str(self.inflight), json.dumps(note))

    def _put_back(self, previous: str, previous_revision: str | None) -> tuple[str, str]:
        """Result for the ledger, and for people what serves now."""
        try:
            self.restore(previous, previous_revision)
        except (Failed, PanelError, EngineError) as error:
            self.say(f"restore failed: {error}")
            return "failed, NOT restored", f"AND {previous} COULD NOT BE PUT BACK: {error}"
        return "failed, restored", f"{previous} is back and answers"

    def _undo(self) -> NoReturn:
        """Take back the release of ``image``, unless somebody has released since or nothing ran before it."""
        params = self.params
        image, service = params["image"], params["service"]
        self.panel = open_panel(params["url"], params["token_file"])
        live = self.ledger.live(service)
        now = (self.inspect().get("source") or {}).get("image") or "nothing"
        if (
            not live
            or not live[-1]["to"] == now == image
            or digest_of(image) not in self.swarm.state().get("image", "")
            or self.inflight.exists()
        ):
            fate = f"{service}: another hand has been there since, so nothing was put back; the panel has {now}"
            self.module.exit_json(changed=False, switched=False, fate=fate, timeline=self.timeline)
        previous, revision, self.migration = (
            str(live[-1].get(key, "")) for key in ("from", "revision", "migration")
        )
        if previous in ("", image):
            self._record(previous, image, revision, "failed", params["reason"])
            fate = f"{service}: nothing ran before {image}, so it stays and serves"
            self.module.exit_json(changed=False, switched=False, fate=fate, timeline=self.timeline)
        self.say(f"undo {service}: {image} -> {previous}")
        known = [entry["revision"] for entry in live if entry["to"] == previous]
        previous_revision = known[-1] if known else None
        self._note(previous, previous_revision)
        result, fate = self._put_back(previous, previous_revision)
        self._record(previous, image, revision, result, params["reason"])
        if result != "failed, NOT restored":
            self.inflight.unlink(missing_ok=True)
        self.module.exit_json(
            changed=True, switched=True, fate=f"{service}: {fate}", timeline=self.timeline
        )

    def _fail(
        self, image: str, revision: str, previous: str, previous_revision: str | None, reason: str
    ) -> NoReturn:
        self.say(f"failed: {reason.splitlines()[0]}")
        if not previous:
            result = "failed"
            fate = (
                "there was no release before it, so nothing could be put back. Should it come up after all, "
                "the same command says so in the ledger"
            )
        else:
            result, fate = self._put_back(previous, previous_revision)
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
        self.ledger.append(
            {
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
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str",
                "default": "deploy",
                "choices": ["deploy", "rollback", "undo", "history"],
            },
            "project": {"type": "str", "required": True},
            "service": {"type": "str", "required": True},
            "image": {"type": "str", "default": ""},
            "revision": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "migration": {"type": "str", "default": ""},
            "contracts": {"type": "dict", "default": {}},
            "accept": {"type": "str", "default": ""},
            "health_url": {"type": "str", "required": True},
            "connect_address": {"type": "str", "default": "127.0.0.1"},
            "ca_file": {"type": "str", "default": ""},
            "registry_username": {"type": "str", "default": ""},
            "registry_password": {"type": "str", "default": "", "no_log": True},
            **PANEL_ARGUMENTS,
            **LOCK_ARGUMENTS,
            "timeout": {"type": "int", "default": 600},
            "revision_timeout": {"type": "int", "default": 60},
            "min_free_mb": {"type": "int", "default": 1024},
            "entries": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    when_locked = "wait until it is done, or give this one time to wait: -e release_lock_wait=900"
    with failures(module, when_locked, EngineError):
        Release(module).run()


if __name__ == "__main__":
    main()
