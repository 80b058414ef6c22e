"""The droplet that the stand-in "makes", as the local droplet: a virtual machine that boots by the user data sent.

One machine is what this computer bears: the oldest droplet has it. One that `make up` made is never touched.
"""

from __future__ import annotations

import threading
import time
import traceback
from operator import itemgetter
from pathlib import Path
from typing import Any

from local.droplet import machine
from local.settings import LocalError, Settings

from .app import Api

SECONDS = 1.0  # between two looks at the account, which changes with anybody's call, also by what ends meanwhile


class Machines:
    """Makes the machine follow the account."""

    def __init__(self, api: Api, settings: Settings, volumes: Path) -> None:
        self._api = api
        self._settings = settings
        self._volumes = volumes  # folder of their disks, which outlive a droplet
        self._told = ""

    def start(self) -> None:
        """Begin to follow, until the process ends."""
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while True:
            try:
                self.step()
            except LocalError as reason:
                self._tell(str(reason))
            except Exception:  # noqa: BLE001 - the account goes on without its machine
                self._tell(traceback.format_exc())
            time.sleep(SECONDS)

    def _tell(self, why: str) -> None:
        """Say once why there is no machine: it is tried again every second."""
        if why != self._told:
            self._told = why
            print(why, flush=True)

    def step(self) -> None:
        """Do what is missing. Raises LocalError where that does not work."""
        account = self._api.account_now()
        droplet: dict[str, Any] | None = min(
            account["droplets"], key=itemgetter("id"), default=None
        )
        known = machine.state(self._settings)
        if known and "number" not in known:
            if droplet:
                raise LocalError(
                    f"digitalocean: {droplet['name']} has no machine, there is one of `make up`. Next: make down"
                )
        elif known or droplet:
            with machine.alone(self._settings):
                if known and known["number"] != (droplet or {}).get("id"):
                    machine.destroy(self._settings)
                    known = {}
                if droplet:
                    self._run(droplet, known)
                    self._attach(droplet["id"], account["volumes"])
        for path in self._volumes.glob("*.raw"):
            if path.stem not in {one["name"] for one in account["volumes"]}:
                path.unlink()

    def _run(self, droplet: dict[str, Any], known: dict[str, Any]) -> None:
        runs = bool(known) and machine.running_pid(self._settings) != 0
        if droplet["status"] == "off" and runs:
            machine.stop(self._settings)
        elif droplet["status"] == "active" and not known:
            told = droplet["user_data"]
            machine.make_as_told(self._settings, droplet["id"], droplet["name"], told)
        elif droplet["status"] == "active" and not runs:
            machine.boot(self._settings)

    def _attach(self, droplet: int, volumes: list[dict[str, Any]]) -> None:
        for volume in volumes:
            if droplet in volume["droplet_ids"] and machine.state(self._settings):
                machine.attach(self._settings, volume["name"], self._disk(volume))

    def _disk(self, volume: dict[str, Any]) -> Path:
        """A volume's disk, of its size, and empty at first."""
        path = self._volumes / f"{volume['name']}.raw"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(volume["size_gigabytes"] << 30)
        return path
