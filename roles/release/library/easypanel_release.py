"""Ansible module: one release of one app, from the lock to the ledger, in one process on the droplet.

A release is the whole app: its image by digest, environment, mounts, resources, command and domains.
One process, because then the kernel frees the lock when it dies, and a controller that goes away in the
middle does not leave a release half done: this process finishes it and writes the ledger.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from ansible.module_utils.app_changes import (
    LISTS,
    Change,
    Desired,
    State,
    changes,
    desired,
    record,
    rendered,
    returned,
)
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
from ansible.module_utils.panel_app import KeptReleases, PanelApp, as_it_was, passes
from ansible.module_utils.release_ledger import Ledger, overtaken, ran_before, refusal, shown
from ansible.module_utils.swarm_service import (
    PLACEMENT,
    EngineError,
    HealthAddress,
    SwarmService,
    placement,
)

DOCUMENTATION = r"""
module: easypanel_release
short_description: Release an app of the panel as a whole, verified, or restore what was and fail
description:
  - Locks the host, sets image and settings in the panel, fires the deploy hook and waits for the truth.
  - The truth is the panel's action, a fresh and completed Swarm update of the wanted digest, and the wanted
    revision at the health address three times in a row; without such an address the first two.
  - When it does not come, all that the panel had before is put back, secrets included, and the module fails.
  - Every release is one line in an append-only ledger, with its settings, and secrets as hashes. The last five
    are kept whole beside the panel's token.
  - A rollback takes image and settings from the ledger, but secrets and credentials as they are given now.
  - An undo takes back a release that came up and proved bad afterwards, if it is still what serves.
options:
  action: {type: str, default: deploy, choices: [deploy, rollback, undo, history], description: What to do.}
  project: {type: str, required: true, description: Panel project.}
  service: {type: str, required: true, description: App in the project.}
  app: {type: dict, default: {}, description: "The app, as the filter panel_apps gives it; empty: its image alone."}
  secret_env: {type: dict, default: {}, description: Its environment values that must never be shown.}
  secret_files: {type: dict, default: {}, description: "Contents of mounted files that hold a secret, by path."}
  image: {type: str, default: "", description: "What to release or undo, as name@sha256:digest; empty: what runs."}
  drop: {type: list, elements: str, default: [], description: "Mounts, ports and domains to remove, as paths."}
  gate: {type: str, default: "", description: Command on this host that must succeed before another image runs.}
  gate_waived: {type: str, default: "", description: Why it is not asked; kept in the ledger.}
  reason: {type: str, default: "", description: Why a release is undone; kept in the ledger.}
  newer: {type: list, elements: str, default: [], description: Revisions that a deploy must not replace.}
  revision: {type: str, default: "", description: Git revision that the health address must report.}
  migration: {type: str, default: "", description: Newest migration that the caller knows; for the ledger.}
  contracts: {type: dict, default: {}, description: "Migrations that take away, each with what; for what ran before."}
  accept: {type: str, default: "", description: "Those the earlier release does without; comma-separated."}
  health_url: {type: str, default: "", description: Public health address of the app; empty when it has none.}
  connect_address: {type: str, default: 127.0.0.1, description: Where to connect for it; the droplet's own proxy.}
  ca_file: {type: str, default: "", description: A certificate or its CA to trust beside the system's.}
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
switched: {type: bool, returned: success, description: Whether another release serves than before.}
image: {type: str, returned: when another release serves, description: Its image.}
plan: {type: list, elements: dict, returned: in check mode, description: What would change.}
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
PATIENCE = 60  # seconds in which a panel may be away
T = TypeVar("T")


def digest_of(image: str) -> str:
    """The part by which Swarm knows an image: its digest; all of a name that has none."""
    return image.rpartition("@")[2]


class Failed(Exception):
    """The release did not come up; the text is the reason."""


# Whatever goes wrong once something is written leads to what was before, also an answer that makes no sense.
FAULTS = (Failed, PanelError, EngineError, ValueError, LookupError, TypeError, AttributeError)


class Release:
    """One release of ``service``; methods run in the order of the design's §3."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        docker = module.get_bin_path("docker", required=True)
        self.service: str = self.params["service"]
        name = f"{self.params['project']}_{self.service}"
        self.swarm = SwarmService(module.run_command, docker, name)
        self.health: HealthAddress | None = None
        if url := self.params["health_url"]:
            self.health = HealthAddress(url, self.params["connect_address"], self.params["ca_file"])
        self.key = {"projectName": self.params["project"], "serviceName": self.service}
        self.state = pathlib.Path(self.params["state_directory"])
        self.ledger = Ledger(self.state / "releases.jsonl")
        self.kept = KeptReleases(self.params["token_file"])
        self.inflight = self.state / f"{self.service}.inflight.json"
        self.started = time.monotonic()
        self.timeline: list[str] = []
        self.action: str = self.params["action"]
        self.migration: str = self.params["migration"]
        self.before = Desired(self.service, {"image": ""})  # what to put back
        self.gate_waived = ""
        self.panel: Panel
        self.app: PanelApp

    # -- what is --------------------------------------------------------------

    def say(self, text: str) -> None:
        """Add a line to the timeline, unless it is the last one again."""
        if not self.timeline or self.timeline[-1][10:] != text:
            self.timeline.append(f"{time.monotonic() - self.started:6.1f} s  {text}")

    def _open(self) -> None:
        self.panel = open_panel(self.params["url"], self.params["token_file"])
        self.app = PanelApp(self.panel, self.params["project"], self.service)

    def _answers(self) -> tuple[str | None, str]:
        """Revision that serves, or why there is none; ("", "") of an app that has no address to ask."""
        return self.health.revision_or_reason() if self.health else ("", "")

    def _is(self, wanted: str, reported: str | None) -> bool:
        """Whether what was reported is the wanted revision; where none is wanted or reported, whether it answers."""
        return not self.health or (reported is not None and wanted in ("", reported))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """An answer of the panel, which may be away for a minute."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return ask()
            except (PanelError, ValueError) as error:
                if not passes(error) or time.monotonic() > deadline:
                    raise
                self.say("the panel does not answer as it should; it is asked again")
            time.sleep(POLL)

    def actions(self) -> list[dict[str, Any]]:
        """The app's latest deploys, newest first."""
        found = self.panel.read("listActions", type="deployment", **self.key)
        return sorted(found, key=lambda action: str(action["createdAt"]), reverse=True)

    # -- what changes ---------------------------------------------------------

    def fire_and_watch(self, image: str, revision: str | None) -> None:
        """Fire the hook and return when ``image`` is live; raises Failed with the reason.

        ``revision`` None: any healthy answer will do (what ran before was never asked).
        """
        digest = digest_of(image)
        before = self.swarm.state()
        known_actions = {action["id"] for action in self._patiently(self.actions)}
        self._patiently(lambda: self.panel.fire_hook(self.app.hook()))
        self.say("deploy hook fired")
        begun, timeout = time.monotonic(), self.params["timeout"]
        deadline, longest = (begun + times * timeout for times in (1, 3))
        completed_at: float | None = None
        steady, seen, status = 0, "nothing yet", ""
        # What still is on its way would come up after all: it is not given up.
        while time.monotonic() < (deadline if status in ("", "done") else longest):
            if status != "done":
                new = (a for a in self._patiently(self.actions) if a["id"] not in known_actions)
                action = next(new, None)
                status = str(action["status"]) if action else ""
                if action and status == "error":
                    raise Failed(self._why(str(action["id"])))
                if status == "done":
                    self.say("panel: deploy done")
                    deadline = max(deadline, time.monotonic() + self.params["revision_timeout"])
            if status and completed_at is None:
                if failure := self.swarm.failure(before):
                    raise Failed(failure)
                if status == "done" and (lost := self._misplaced()):
                    seen = lost
                elif status == "done" and self.swarm.updated(before, digest):
                    completed_at = time.monotonic()
                    self.say("swarm: update completed, wanted digest runs")
            if completed_at is not None:
                reported, problem = self._answers()
                right = reported is not None and revision in (None, reported)
                steady = steady + 1 if right else 0
                seen = problem or f"revision {reported}"
                if not self.health:
                    return
                if steady >= STEADY:
                    self.say(f"health: {seen}, {STEADY} times in a row")
                    return
                if not right and time.monotonic() - completed_at > self.params["revision_timeout"]:
                    raise Failed(
                        f"the new container runs, but reports {seen}; wanted revision {revision}"
                    )
            time.sleep(0.5 if steady else POLL)
        waited = f"not live after {time.monotonic() - begun:.0f} s"
        if status not in ("", "done"):
            waited += ", and the panel's deploy still runs"
        raise Failed(f"{waited}; last seen: {seen}\n{self.swarm.last_words()}")

    def _misplaced(self) -> str:
        """What keeps the app on its nodes and is not there; empty where it is, or the Swarm has one node."""
        file = pathlib.Path(self.params["state_directory"], PLACEMENT)
        wanted = placement(file).get(self.swarm.name, [])
        if not wanted or set(wanted) <= set(self.swarm.state().get("constraints", [])):
            return ""
        return f"Swarm may run it anywhere, not only where {', '.join(wanted)}: is cimt-placement.service at work?"

    def _why(self, action: str) -> str:
        """The words of a deploy that the panel calls failed."""
        found = self._patiently(lambda: self.panel.read("getAction", id=action))
        *said, verdict = str(found.get("log") or "").strip().splitlines()[-20:] or ["no log"]
        return "\n".join([f"the panel's deploy failed: {verdict}", *said, self.swarm.last_words()])

    def restore(self, before: Desired, revision: str | None, mark: str) -> None:
        """Put everything back that the panel had before.

        A start-first update that failed has left the old tasks serving. Swarm's own rollback leaves them
        alone, where a deploy would replace them; that is for where they are gone. They are those of ``mark``;
        without one, it is deployed.
        """
        image = before.values["image"]
        there = self._patiently(self.app.read)
        drop = [path for path in there if path.startswith(LISTS) and path not in before.values]
        self.app.converge(before, drop)
        self.say(f"panel set to {image}, and all settings as before")
        if mark and self.swarm.can_roll_back(mark):
            self.swarm.roll_back()
            self.say("swarm told to take its update back")
            deadline = time.monotonic() + self.params["timeout"]
            while not self.swarm.settled(mark) and time.monotonic() < deadline:
                time.sleep(POLL)
        if mark and self.swarm.settled(mark):
            reported, problem = self._answers()
            if reported is None or revision not in (None, reported):
                raise Failed(problem or f"revision {reported} answers, wanted {revision}")
            self.say(f"the previous release never stopped running ({reported or image})")
            return
        self.fire_and_watch(image, revision)
        if "@" in image and self.swarm.surplus(digest_of(image)):
            # Swarm restarted the broken task while it was being replaced: the next update clears its slot.
            self.say("swarm runs one task too many; the same release once more")
            self.fire_and_watch(image, revision)
        self.say("the previous release is back")

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
        if params["action"] == "deploy" and params["image"]:
            self._check_image(params["image"], params["revision"])
        if self.module.check_mode:
            self._open()
            there = self._patiently(self.app.read)
            wanted, _, drop = self._target(there)
            todo = changes(wanted, there, drop)
            self.module.exit_json(
                changed=bool(todo),
                timeline=[],
                plan=[change.data() for change in todo],
                changes=[str(change) for change in todo],
                diff={"prepared": rendered(todo)},
            )
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the controller may go away
        what = f"{params['action']} of {self.service} {params['image']}".strip()
        with host_lock(params["state_directory"], params["who"], what, params["lock_wait"]):
            self._undo() if params["action"] == "undo" else self._locked()

    def _check_image(self, image: str, revision: str) -> None:
        if not IMAGE.fullmatch(image):
            self.module.fail_json(
                msg=f"image '{image}' is not name@sha256:<64 hex>: a release names a digest, never a tag. "
                "Next: make build prints it"
            )
        if not REVISION.fullmatch(revision) and (revision or self.health):
            self.module.fail_json(
                msg=f"revision '{revision}' is not a full git revision. Next: git rev-parse HEAD"
            )

    def _present(self, image: str) -> Desired:
        """The app as it is declared now, with this image."""
        params = self.params
        registry = (params["registry_username"], params["registry_password"])
        if params["app"]:
            files = params["secret_files"]
            return desired(params["app"], params["secret_env"], registry, image, files)
        values = {"image": image}
        if registry[0]:
            values |= {"registry.username": registry[0], "registry.password": registry[1]}
        return Desired(self.service, values, frozenset(["registry.password"]))

    def _target(self, there: State) -> tuple[Desired, str, list[str]]:
        """The app to release, its revision, and what goes of mounts, ports and domains.

        Refuses a way back that later migrations have closed.
        """
        params = self.params
        live = self.ledger.live(self.service)
        if reason := overtaken(live, params["newer"]):
            self.module.fail_json(msg=f"{params['action']} refused: {reason}")
        deploys = params["action"] == "deploy"
        image = (params["image"] if deploys else "") or there["image"]
        if deploys and not image:
            self.module.fail_json(
                msg=f"there is no image of {self.service} to release, and none runs. Next: make build, then make deploy"
            )
        entry = None if deploys and not params["image"] else ran_before(live, params["image"])
        if entry is None:
            if not deploys:
                self.module.fail_json(
                    msg=f"the ledger knows no release of {self.service} before the current one. "
                    "Next: make history, or make deploy IMAGE=… REVISION=…"
                )
            last = live[-1] if live and live[-1]["to"] == image else {}
            known = last.get("revision", "")
            wanted = self._only_what_is_meant(self._present(image), there)
            if not params["image"] and last.get("action") == "rollback":
                # What was rolled back keeps the settings of that release; only secrets are today's.
                wanted, _ = returned(last, wanted)
                self.action = "rollback"
            return wanted, params["revision"] or known, params["drop"]
        if entry["to"] != live[-1]["to"]:
            # One that was taken back has moved the database all the same.
            came_up = [
                line
                for line in self.ledger.entries()
                if (line["service"], line["result"]) == (self.service, "live")
            ]
            reason = refusal(
                entry, came_up, params["migration"], params["contracts"], params["accept"]
            )
            if reason:
                self.module.fail_json(
                    msg=f"{params['action']} refused, nothing was changed: {reason}"
                )
            self.migration = entry.get("migration", "")
        revision = params["revision"] or entry["revision"]
        if deploys:
            wanted = self._only_what_is_meant(self._present(image), there)
            return wanted, revision, params["drop"]
        if "app" not in entry:
            self.say("the ledger has only the image of that release: settings stay as they are")
            wanted = self._only_what_is_meant(Desired(self.service, {"image": entry["to"]}), there)
            return wanted, revision, []
        wanted, gone = returned(entry, self._present(entry["to"]))
        if gone:
            self.say(f"not set any more, and left out: {', '.join(gone)}")
        last = live[-1].get("app", {})
        added = {*last.get("plain", ()), *last.get("secret", ())} - set(wanted.values)
        drop = [path for path in there if path.startswith(LISTS) and path in added]
        return wanted, revision, drop

    @staticmethod
    def _only_what_is_meant(wanted: Desired, there: State) -> Desired:
        """Where only an image is meant, the rest is wanted as it is."""
        if "replicas" in wanted.values:
            return wanted
        now = as_it_was(wanted.name, there)
        return Desired(wanted.name, {**now.values, **wanted.values}, now.secret | wanted.secret)

    def _locked(self) -> NoReturn:
        params = self.params
        free = shutil.disk_usage("/var/lib/docker").free // 2**20
        if free < params["min_free_mb"]:
            self.module.fail_json(
                msg=f"only {free} MB free on the droplet's disk, {params['min_free_mb']} MB are needed; nothing "
                "was changed. Next, on the droplet: docker image prune --all --filter until=168h"
            )
        self._open()
        there = self._patiently(self.app.read)
        wanted, revision, drop = self._target(there)
        image, todo = wanted.values["image"], changes(wanted, there, drop)
        previous, swarm = there["image"], self.swarm.state()
        previous_revision = self._answers()[0] if swarm else None
        mark = str(swarm.get("mark", ""))
        runs = bool(swarm) and self.swarm.runs(digest_of(image))
        restarts = not runs or any(
            change.restarts() and not (change.path == "image" and _same_name(change))
            for change in todo
        )
        cut_short = self.inflight.exists()
        if cut_short:
            restarts = True
            with contextlib.suppress(ValueError):
                left = json.loads(self.inflight.read_text())
                previous, previous_revision = left["from"], left["from_revision"]
                mark = left.get("mark", digest_of(previous) if "@" in previous else "")
                self.before = self.kept.before(self.service) or self.before
                self.say(
                    f"an earlier release by {left['who']} was cut short; it started from {previous}"
                )
        elif not todo and runs and self._is(revision, previous_revision):
            self._already(wanted, revision)
        if previous and any(c.path == "image" and not _same_name(c) for c in todo):
            self._pass_gate()
        self.say(f"{params['action']} {self.service}: {previous or 'nothing'} -> {image}")
        if self.before.values["image"] != previous:
            self.before = as_it_was(self.service, {**there, "image": previous})
        self._note(previous, previous_revision, mark)
        try:
            for change in self.app.converge(wanted, drop):
                self.say(f"panel set: {change}")
            if restarts:
                self.fire_and_watch(image, revision or None)
            else:
                self._still_serves(revision or None)
        except FAULTS as error:
            reason = str(error) or type(error).__name__
            self._fail(wanted, revision, previous, previous_revision, mark, todo, reason)
        self._live(wanted, revision, previous, todo)
        self.inflight.unlink(missing_ok=True)
        self.say("live")
        self.module.exit_json(
            changed=True,
            switched=True,
            image=image,
            changes=[str(change) for change in todo],
            timeline=self.timeline,
        )

    def _pass_gate(self) -> None:
        """Have done what must be before another image takes what the app keeps; refuses otherwise."""
        params = self.params
        command = shlex.split(params["gate"])
        self.gate_waived = params["gate_waived"]
        if not command or self.gate_waived:
            return
        status, out, problem = (127, "", "there is no such program")
        if shutil.which(command[0]):
            self.say(f"gate: {params['gate']}")
            status, out, problem = self.module.run_command(command)
        if status:
            told = (problem or out).strip().splitlines()[-1:] or [f"exit code {status}"]
            self.module.fail_json(
                msg=f"{params['action']} of {self.service} refused, nothing was changed: `{params['gate']}` failed: "
                f"{told[0].removesuffix('.')}. Next: mend that; or the same command with ACCEPT_NO_BACKUP='why not'",
                timeline=self.timeline,
            )

    def _already(self, wanted: Desired, revision: str) -> NoReturn:
        """The end of a release that would change nothing."""
        image = wanted.values["image"]
        self.say(f"{self.service} already runs {image}, revision {revision or 'unknown'}")
        live = self.ledger.live(self.service)
        plain = record(wanted, lambda _: "")["plain"]
        known = bool(live) and live[-1]["to"] == image
        if self.params["app"]:
            known = known and live[-1].get("app", {}).get("plain") == plain
        if not known:
            # It came up after its time limit, or by another hand: what serves is what the ledger says.
            self._live(wanted, revision, image, [])
            self.say("the ledger did not say so; it does now")
        self.module.exit_json(changed=not known, switched=False, timeline=self.timeline)

    def _still_serves(self, revision: str | None) -> None:
        """After a change that starts no container anew, such as a domain: the app answers as before."""
        deadline = time.monotonic() + self.params["revision_timeout"]
        while True:
            reported, problem = self._answers()
            if reported is not None and revision in (None, reported):
                self.say("no container had to be started anew")
                return
            if time.monotonic() > deadline:
                raise Failed(problem or f"revision {reported} answers, wanted {revision}")
            time.sleep(POLL)

    def _note(self, previous: str, previous_revision: str | None, mark: str) -> None:
        """Keep what serves until this has ended: a release after a crash puts that back."""
        self.kept.begin(self.service, self.before.values)
        note = {
            "from": previous,
            "from_revision": previous_revision,
            "mark": mark,
            "who": self.params["who"],
        }
        write_file(str(self.inflight), json.dumps(note))

    def _put_back(self, previous: str, revision: str | None, mark: str) -> tuple[str, str]:
        """Result for the ledger, and for people what serves now."""
        try:
            self.restore(self.before, revision, mark)
        except FAULTS as error:
            self.say(f"restore failed: {error}")
            return "failed, NOT restored", f"AND {previous} COULD NOT BE PUT BACK: {error}"
        return "failed, restored", f"{previous} is back and answers"

    def _undo(self) -> NoReturn:
        """Take back the release of ``image``, unless somebody has released since or nothing ran before it."""
        params = self.params
        image, service = params["image"], self.service
        self._open()
        live = self.ledger.live(service)
        there = self._patiently(self.app.read)
        has = there["image"] or "nothing"
        if (
            not live
            or not live[-1]["to"] == has == image
            or digest_of(image) not in self.swarm.state().get("image", "")
            or self.inflight.exists()
        ):
            fate = f"{service}: another hand has been there since, so nothing was put back; the panel has {has}"
            self.module.exit_json(changed=False, switched=False, fate=fate, timeline=self.timeline)
        previous, revision, self.migration = (
            str(live[-1].get(key, "")) for key in ("from", "revision", "migration")
        )
        self.before = self.kept.before(service) or self.before
        if self.before.values["image"] != previous:
            self.before = as_it_was(service, {**there, "image": previous})
        added = [path for path in there if path not in self.before.values]
        if previous == "" or not changes(self.before, there, added):
            self._record(previous, image, revision, "failed", params["reason"])
            fate = f"{service}: nothing ran before {image}, so it stays and serves"
            self.module.exit_json(changed=False, switched=False, fate=fate, timeline=self.timeline)
        self.say(f"undo {service}: {image} -> {previous}")
        known = [entry["revision"] for entry in live if entry["to"] == previous]
        previous_revision = (known[-1] if known else None) or None
        self._note(previous, previous_revision, "")
        result, fate = self._put_back(previous, previous_revision, "")
        self._record(previous, image, revision, result, params["reason"])
        if result != "failed, NOT restored":
            self.inflight.unlink(missing_ok=True)
        self.module.exit_json(
            changed=True, switched=True, fate=f"{service}: {fate}", timeline=self.timeline
        )

    def _fail(
        self,
        wanted: Desired,
        revision: str,
        previous: str,
        previous_revision: str | None,
        mark: str,
        todo: list[Change],
        reason: str,
    ) -> NoReturn:
        image = wanted.values["image"]
        self.say(f"failed: {reason.splitlines()[0]}")
        if not previous:
            result = "failed"
            fate = (
                "there was no release before it, so nothing could be put back. Should it come up after all, "
                "the same command says so in the ledger"
            )
        else:
            result, fate = self._put_back(previous, previous_revision, mark)
        self._record(previous, image, revision, result, reason, wanted, todo)
        if result != "failed, NOT restored":
            self.inflight.unlink(missing_ok=True)
        steps = "\n".join(self.timeline)
        self.module.fail_json(
            msg=f"{self.params['action']} of {self.service} failed; {fate}.\n"
            f"wanted: {image} (revision {revision})\nreason: {reason}\n{steps}\n"
            "Next: fix the image or its settings and release again; make history shows what ran when",
            timeline=self.timeline,
        )

    def _live(self, wanted: Desired, revision: str, previous: str, todo: list[Change]) -> None:
        """Keep a release that came up: whole beside the token, and as a line of the ledger."""
        self.kept.add(self.service, now(), wanted.values)
        self._record(previous, wanted.values["image"], revision, "live", "", wanted, todo)

    def _record(
        self,
        before: str,
        image: str,
        revision: str,
        result: str,
        reason: str,
        wanted: Desired | None = None,
        todo: list[Change] | None = None,
    ) -> None:
        line = {
            "time": now(),
            "who": self.params["who"],
            "action": self.action,
            "service": self.service,
            "from": before,
            "to": image,
            "revision": revision,
            "migration": self.migration,
            "result": result,
            "seconds": round(time.monotonic() - self.started, 1),
            "reason": (reason.splitlines() or [""])[0][:300],
        }
        if wanted is not None and "replicas" in wanted.values:
            line["app"] = record(wanted, self.kept.hashed)
        if self.gate_waived:
            line["gate_waived"] = self.gate_waived
        if todo:
            line["changes"] = [str(change) for change in todo]
        self.ledger.append(line)


def _same_name(change: Change) -> bool:
    """Whether an image only got the digest that it runs by."""
    return "@" not in change.old and change.new.partition("@")[0] == change.old


def now() -> str:
    """The time, as the ledger has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


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
            "app": {"type": "dict", "default": {}},
            "secret_env": {"type": "dict", "default": {}, "no_log": True},
            "secret_files": {"type": "dict", "default": {}, "no_log": True},
            "image": {"type": "str", "default": ""},
            "drop": {"type": "list", "elements": "str", "default": []},
            "gate": {"type": "str", "default": ""},
            "gate_waived": {"type": "str", "default": ""},
            "revision": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "migration": {"type": "str", "default": ""},
            "contracts": {"type": "dict", "default": {}},
            "accept": {"type": "str", "default": ""},
            "health_url": {"type": "str", "default": ""},
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
