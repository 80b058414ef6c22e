"""The local droplet as a person uses it: by verbs, by SSH, by its address. Traffic goes to it and nowhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx

from local.droplet import machine
from local.settings import LocalError, domain, load
from local.waiting import eventually

ROOT = pathlib.Path(__file__).parents[1]
LOCAL = ROOT / ".local"
DOMAIN = "api.cimt.localhost"
APP = {"projectName": "cimt", "serviceName": "api"}
GENEROUS = (
    900  # seconds; an emulated droplet on a busy machine is slow, and a wait ends on its condition
)


def make(*arguments: str, timeout: float = GENEROUS) -> subprocess.CompletedProcess[str]:
    """Run ``make …`` and return it with its whole output in ``stdout``."""
    print(f"\n$ make {' '.join(arguments)}")
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=os.environ | {"ENV": "local", "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    print(done.stdout)
    return done


def on_droplet(command: str, timeout: float = 120, node: int = 1) -> str:
    """Output of a shell command on the droplet or its worker, as root. Raises LocalError, subprocess.TimeoutExpired."""
    return machine.as_root(load(running=True).of_each_node()[node - 1], command, timeout)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Not one block free on the droplet's disk, not even for root."""
    # fallocate takes what is left in one go; dd then takes the crumbs and ends on "no space left".
    on_droplet(
        "fallocate -l $(df -B1 --output=avail / | tail -1) /var/tmp/filler && "
        "{ dd if=/dev/zero of=/var/tmp/crumbs bs=64k 2>/dev/null || test -s /var/tmp/crumbs; }",
        timeout=600,
    )
    try:
        yield
    finally:
        on_droplet("rm -f /var/tmp/filler /var/tmp/crumbs")


def reboot() -> None:
    """Restart the droplet and wait until it takes commands again."""
    boot = on_droplet("cat /proc/sys/kernel/random/boot_id")
    on_droplet("systemctl reboot --no-block")
    deadline = time.monotonic() + GENEROUS
    while time.monotonic() < deadline:
        with contextlib.suppress(LocalError, subprocess.TimeoutExpired):
            if on_droplet("cat /proc/sys/kernel/random/boot_id", timeout=60) != boot:
                return
        time.sleep(3)
    raise AssertionError(f"the droplet did not come back within {GENEROUS} s")


def panel(operation: str, body: dict[str, object] | None = None, query: str = "") -> object:
    """Call the panel's API from the droplet itself, as somebody with its token would."""
    data = f"-X POST --data {json.dumps(json.dumps(body))}" if body is not None else ""
    text = on_droplet(
        f"curl -sS --fail-with-body -H @<(echo Authorization: $(cat /etc/cimt/easypanel.token)) "
        f"-H 'Content-Type: application/json' {data} 'http://127.0.0.1:3000/api/{operation}{query}'"
    )
    return json.loads(text) if text else None


def running_image() -> str:
    """Image of the api as Swarm runs it."""
    return on_droplet(
        "docker service inspect cimt_api --format '{{.Spec.TaskTemplate.ContainerSpec.Image}}'"
    ).strip()


def ledger() -> list[dict[str, object]]:
    """The release ledger, oldest first."""
    return [
        json.loads(line) for line in on_droplet("cat /var/lib/cimt/releases.jsonl").splitlines()
    ]


class Client:
    """A user's client: the public address through TLS, a new connection for every request.

    `state` is the `.local` of the droplet's clone; `authority`, below it, who vouches for the droplet's certificates.
    """

    def __init__(
        self, domain: str = DOMAIN, state: pathlib.Path = LOCAL, authority: str = "ca.crt"
    ) -> None:
        self.domain = domain
        self.port = json.loads((state / "ports.json").read_text())["https"]
        self.context = ssl.create_default_context(cafile=state / authority)

    def request(
        self, method: str, path: str, body: object = None, key: str = "", timeout: float = 60
    ) -> httpx.Response:
        """Ask for ``path``; the name resolves to loopback here, whatever the resolver thinks."""
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(verify=self.context, timeout=timeout) as client:
            return client.request(
                method,
                f"https://127.0.0.1:{self.port}{path}",
                headers={"Host": self.domain, **bearer},
                json=body,
                extensions={"sni_hostname": self.domain},
            )

    def revision(self) -> str:
        """Revision that the product reports."""
        response = self.request("GET", "/healthz")
        response.raise_for_status()
        return str(response.json()["revision"])

    def wait_for(self, revision: str, timeout: float = GENEROUS) -> None:
        """Wait until the product answers with ``revision``."""
        deadline = time.monotonic() + timeout
        seen: object = None
        while time.monotonic() < deadline:
            try:
                seen = self.revision()
            except (httpx.HTTPError, ValueError, KeyError) as error:
                seen = error
            if seen == revision:
                return
            time.sleep(2)
        raise AssertionError(f"not back after {timeout} s; last seen: {seen}")


class Traffic:
    """Users who ask all the while, each time on a new connection; with a key, also somebody who brings documents."""

    def __init__(self, client: Client, key: str = "") -> None:
        self.client = client
        self.asks = [("GET", "/healthz", ""), ("POST", "/chat", "")]
        if key:
            self.asks.append(("GET", "/documents?limit=1", key))
        self.answered = 0
        self.failures: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        deadline = time.monotonic() + 2 * GENEROUS
        while not self._end.is_set() and time.monotonic() < deadline:
            for method, path, key in self.asks:
                started = time.strftime("%H:%M:%S")
                try:
                    response = self.client.request(method, path, key=key)
                    if response.status_code == 200:
                        self.answered += 1
                    else:
                        self.failures.append(f"{started} {method} {path}: {response.status_code}")
                except httpx.HTTPError as error:
                    self.failures.append(f"{started} {method} {path}: {error!r}")
            self._end.wait(0.5)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()

    def assert_no_gap(self) -> None:
        """No request failed, and there were enough of them to say so."""
        assert self.failures == []
        assert self.answered >= 10


class Reader:
    """A person with the page open in Chromium, whose answers stream all the while (tests/acceptance/reader.mjs)."""

    def __enter__(self) -> Reader:
        ports = json.loads((LOCAL / "ports.json").read_text())
        self._log = LOCAL / "logs/reader.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["node", ROOT / "tests/acceptance/reader.mjs"],
                env=os.environ
                | {
                    "WEB_URL": f"https://{domain('web')}",
                    "SUPABASE_URL": f"http://127.0.0.1:{ports['supabase']}",
                    "HTTPS_PORT": str(ports["https"]),
                    "SHOTS": str(LOCAL / "screenshots"),
                },
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(self.answered, "an answer in the browser", GENEROUS, self._process)
        return self

    def answered(self) -> int:
        """How many answers were read to their end."""
        return self._log.read_text().count("answered ")

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(GENEROUS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def assert_whole(self) -> None:
        """Every answer was, also those that a release met; there were some."""
        assert self._process.returncode == 0, self._log.read_text()
        assert self.answered() >= 5


@dataclasses.dataclass(frozen=True)
class Image:
    """A pushed image: its reference as the droplet pulls it, and the revision it should report."""

    reference: str
    revision: str


def built() -> Image:
    """The api that `make build` built last."""
    build = json.loads((LOCAL / "build/api.json").read_text())
    return Image(build["image"], build["revision"])


def variant(image: Image, number: int, lines: str) -> Image:
    """An image on top of another, with these lines of a Dockerfile, pushed; its revision is the digit, forty times."""
    registry = json.loads((LOCAL / "ports.json").read_text())["registry"]
    base = image.reference.replace("10.0.2.2", "127.0.0.1")
    revision = f"{number}" * 40
    target = f"127.0.0.1:{registry}/cimt/api:variant-{number}"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "Dockerfile").write_text(
            f"FROM {base}\nUSER root\n{lines.format(revision=revision)}\nUSER 10001\n"
        )
        for command in (
            [
                "bud",
                "--isolation=chroot",
                "--format=docker",
                "--tls-verify=false",
                "-t",
                target,
                name,
            ],
            ["push", "--tls-verify=false", "--digestfile", str(folder / "digest"), target],
        ):
            subprocess.run(
                ["buildah", *command], check=True, capture_output=True, text=True, timeout=GENEROUS
            )
        digest = (folder / "digest").read_text()
    return Image(f"10.0.2.2:{registry}/cimt/api@{digest}", revision)


def release(image: Image, **settings: str) -> subprocess.CompletedProcess[str]:
    """`make deploy` of an image of the api; with ``settings`` that the files do not say, and told of nothing else."""
    named = ("SERVICE=api", f"IMAGE={image.reference}", f"REVISION={image.revision}")
    if not settings:
        return make("deploy", *named)
    made = {"N8N_TAG": "none", "ETL_TAG": "none", "ETL_SOURCES": "[]", "DATABASE_POOL": "7"}
    given = json.dumps({**made, **settings})
    values = "{{ declared_settings | settings_of_apps(setting) | combine(" + given + ") }}"
    return make("deploy", *named, f"ARGS=-e '{json.dumps({'services_environment': values})}'")


def call_webhook(webhook: str) -> dict[str, Any]:
    """The answer of a workflow, called as a person with the key of the webhooks would."""
    key = (LOCAL / "n8n-webhook-key").read_text().strip()
    deadline = time.monotonic() + GENEROUS
    while True:  # n8n and its proxy need a while after a start
        try:
            answer = Client("n8n.cimt.localhost").request(
                "POST", f"/webhook/{webhook}", key=key, timeout=GENEROUS
            )
            if answer.status_code == 200:
                said: dict[str, Any] = answer.json()
                return said
            seen = f"{answer.status_code} {answer.text[:300]}"
        except httpx.HTTPError as error:
            seen = repr(error)
        assert time.monotonic() < deadline, f"n8n does not answer: {seen}"
        time.sleep(2)
