"""local/registry as skopeo and a plain HTTP client meet it, with the real docker-registry behind it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.registry.rights import change, grant, read, revoke
from local.settings import check_tools
from local.waiting import eventually, free_port

ROOT = Path(__file__).parents[2]
HOST = "registry.example"
# USER:TOKEN, as a client is told them; with a workflow's token, the user is anybody.
PERSON, READER, STRANGER = "ana:ghp-person", "ANA:ghp-reader", "bob:ghp-stranger"
WORKFLOW, READING, MUTE = "me:ghs-workflow", "me:ghs-reading", "me:ghs-mute"
OTHER, FOREIGN = "me:ghs-other-repository", "me:ghs-other-owner"
BOTH = ("read:packages", "write:packages")
DENIED = {"code": "DENIED", "message": "requested access to the resource is denied"}


def reason(failed: subprocess.CompletedProcess[str]) -> str:
    """The end of what skopeo says about a failure."""
    assert failed.returncode != 0
    return failed.stderr.rstrip().rstrip('"').rpartition(": ")[2]


def refused(message: str) -> dict[str, Any]:
    return {"errors": [{"code": "DENIED", "message": message}]}


class Registry:
    """One that runs, and what a client of it does."""

    def __init__(self, folder: Path) -> None:
        check_tools("docker-registry", "skopeo")
        self.folder = folder
        self.state = folder / "state"
        self.port = free_port()
        command = ["-m", "local.registry", "--port", str(self.port), "--name", HOST]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--state", str(self.state)], cwd=ROOT
        )
        eventually(self._answers, "the registry answers", process=self.process)
        self.http = httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            verify=ssl.create_default_context(cafile=self.state / "ca.crt"),
            trust_env=False,
            timeout=60,
        )
        self.certificates = folder / "certificates"
        self.certificates.mkdir()
        shutil.copy(self.state / "ca.crt", self.certificates)

    def _answers(self) -> bool:
        try:
            context = ssl.create_default_context(cafile=self.state / "ca.crt")
            address = f"https://127.0.0.1:{self.port}/v2/"
            return httpx.get(address, verify=context, trust_env=False).status_code == 401
        except (OSError, httpx.TransportError):
            return False

    def token(self, credential: str | None, *scopes: str) -> httpx.Response:
        user, _, token = (credential or "").partition(":")
        auth = (user, token) if credential else None
        parameters = {"service": "ghcr.io", "scope": list(scopes)}
        return self.http.get("/token", params=parameters, auth=auth)

    def ask(
        self, method: str, name: str, rest: str, credential: str, actions: str
    ) -> httpx.Response:
        answer = self.token(credential, f"repository:{name}:{actions}").raise_for_status()
        headers = {"Authorization": f"Bearer {answer.json()['token']}"}
        return self.http.request(method, f"/v2/{name}/{rest}", headers=headers)

    def skopeo(
        self, *arguments: str, credential: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        accounts = self.folder / "auth.json"
        account = base64.b64encode(f"{credential}".encode()).decode()
        registry = f"127.0.0.1:{self.port}"
        accounts.write_text(
            json.dumps({"auths": {registry: {"auth": account}} if credential else {}})
        )
        return subprocess.run(
            ["skopeo", "--insecure-policy", *arguments],
            env={"PATH": os.environ["PATH"], "REGISTRY_AUTH_FILE": str(accounts)},
            capture_output=True,
            text=True,
        )

    def push(
        self, image: Path, name: str, credential: str, form: str = "oci"
    ) -> subprocess.CompletedProcess[str]:
        target = f"docker://127.0.0.1:{self.port}/{name}:1"
        options = ["--format", form, "--dest-cert-dir", str(self.certificates)]
        return self.skopeo("copy", *options, f"oci:{image}:1", target, credential=credential)

    def pull(
        self, name: str, credential: str | None, tag: str = "1"
    ) -> subprocess.CompletedProcess[str]:
        source = f"docker://127.0.0.1:{self.port}/{name}:{tag}"
        target = f"oci:{self.folder / 'pulled'}:1"
        options = ["--src-cert-dir", str(self.certificates)]
        return self.skopeo("copy", *options, source, target, credential=credential)

    def package(self, name: str) -> dict[str, Any] | None:
        return read(self.state, "packages.json").get(name)

    def memory(self) -> int:
        """The most that the process has ever held, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


def image(folder: Path, content: bytes = b"content", source: str | None = None) -> Path:
    """An OCI layout of one layer; where asked, with the label that says its source."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        kind = f"application/vnd.oci.image.{kind}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as layer:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        layer.addfile(entry, io.BytesIO(content))
    layer_id = f"sha256:{hashlib.sha256(archive.getvalue()).hexdigest()}"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer_id]},
        "config": {"Labels": {"org.opencontainers.image.source": source} if source else None},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(gzip.compress(archive.getvalue(), 0), "layer.v1.tar+gzip")],
    }
    index = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    index["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def runs(pid: str) -> bool:
    """Whether a process is there and has not ended: what nobody has waited for has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    one = Registry(tmp_path_factory.mktemp("registry"))
    for credential, user, scopes in (
        (PERSON, "ana", BOTH),
        (READER, "Ana", BOTH[:1]),
        (STRANGER, "bob", BOTH),
    ):
        grant(one.state, credential.split(":")[1], user=user, scopes=scopes)
    for credential, repository, permission in (
        (WORKFLOW, "ana/CIMT", "write"),
        (READING, "ana/cimt", "read"),
        (MUTE, "ana/cimt", ""),
        (OTHER, "ana/other", "write"),
        (FOREIGN, "bob/cimt", "write"),
    ):
        grant(one.state, credential.split(":")[1], repository=repository, packages=permission)
    yield one
    one.process.kill()
    one.process.wait()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image(tmp_path_factory.mktemp("labelled"), source="https://github.com/Ana/cimt")


def test_login(registry: Registry) -> None:
    address = f"127.0.0.1:{registry.port}"
    options = ["--cert-dir", str(registry.certificates), "--username", "ana", "--password"]
    good = registry.skopeo("login", *options, "ghp-person", address)
    assert (good.returncode, good.stdout) == (0, "Login Succeeded!\n"), good.stderr
    bad = registry.skopeo("login", *options, "ghp-nobodys", address)
    assert bad.returncode != 0
    assert "403" in bad.stderr


def test_a_token_that_is_not_known_is_denied(registry: Registry) -> None:
    scope = "repository:ana/cimt/login:pull"
    for credential in ("ana:ghp-nobodys", "ana:", "bob:ghp-person"):
        answer = registry.token(credential, scope)
        assert (answer.status_code, answer.json()) == (403, refused("denied"))
    broken = registry.http.get("/token", headers={"Authorization": "Basic %"})
    assert (broken.status_code, broken.json()) == (403, refused("denied"))
    for credential in (PERSON, "Ana:ghp-person", WORKFLOW):
        assert registry.token(credential, scope).status_code == 200
    grant(registry.state, "ghs-brief", repository="ana/cimt", packages="read")
    assert registry.token("me:ghs-brief", scope).status_code == 200
    revoke(registry.state, "ghs-brief")
    assert registry.token("me:ghs-brief", scope).status_code == 403


def test_no_credential_is_kept(registry: Registry) -> None:
    path = registry.state / "tokens.json"
    assert "ghp-" not in path.read_text()
    for secret in (path, registry.state / "server.key"):
        assert secret.stat().st_mode & 0o777 == 0o600


def test_the_challenge_leads_to_where_the_client_came_from(registry: Registry) -> None:
    for host in (f"127.0.0.1:{registry.port}", f"{HOST}:5443"):
        answer = registry.http.get("/v2/", headers={"Host": host})
        assert answer.status_code == 401
        assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
        assert answer.headers["www-authenticate"] == (
            f'Bearer realm="https://{host}/token",service="ghcr.io",scope="repository:user/image:pull"'
        )
    answer = registry.http.get("/v2/ana/cimt/api/manifests/1")
    assert answer.headers["www-authenticate"] == (
        f'Bearer realm="https://127.0.0.1:{registry.port}/token",service="ghcr.io",'
        'scope="repository:ana/cimt/api:pull"'
    )
    forged = {"Authorization": "Bearer no.such.token"}
    assert registry.http.get("/v2/ana/cimt/api/tags/list", headers=forged).status_code == 401


def test_the_first_push_of_a_workflow_makes_a_private_package_of_its_repository(
    registry: Registry, plain: Path
) -> None:
    name = "ana/cimt/first"
    pushed = registry.push(plain, name, WORKFLOW)
    assert pushed.returncode == 0, pushed.stderr
    assert registry.package(name) == {"owner": "ana", "repository": "ana/cimt", "public": False}
    for credential in (WORKFLOW, READING, PERSON, READER):
        assert registry.pull(name, credential).returncode == 0
    for credential in (STRANGER, MUTE, OTHER, FOREIGN):
        assert reason(registry.pull(name, credential)) == "denied"
    assert reason(registry.pull(name, None)) == "unauthorized"
    with change(registry.state, "packages.json") as packages:
        packages[name]["public"] = True
    for credential in (None, STRANGER, MUTE):
        assert registry.pull(name, credential).returncode == 0
    for credential in (STRANGER, FOREIGN, OTHER):
        assert "403 (Forbidden)" in registry.push(plain, name, credential).stderr


def test_a_package_that_is_not_linked_refuses_the_workflow_until_a_label_links_it(
    registry: Registry, plain: Path, labelled: Path
) -> None:
    name = "ana/cimt/unlinked"
    assert registry.push(plain, name, PERSON).returncode == 0
    assert registry.package(name) == {"owner": "ana", "repository": None, "public": False}
    for credential in (WORKFLOW, OTHER):
        pushed = registry.push(labelled, name, credential)
        assert pushed.returncode != 0
        assert "403 (Forbidden)" in pushed.stderr
        assert reason(registry.pull(name, credential)) == "denied"
    # As buildah makes images.
    assert registry.push(labelled, name, PERSON, form="v2s2").returncode == 0
    assert registry.package(name) == {"owner": "ana", "repository": "ana/cimt", "public": False}
    assert registry.push(plain, name, WORKFLOW).returncode == 0
    assert registry.pull(name, READING).returncode == 0
    assert registry.push(plain, name, OTHER).returncode != 0


def test_a_label_of_another_owner_links_nothing(registry: Registry, tmp_path: Path) -> None:
    sources = ("https://github.com/bob/cimt", "https://github.com/ana", "ana/cimt")
    for number, source in enumerate(sources):
        name = f"ana/cimt/label{number}"
        labelled = image(tmp_path / str(number), source=source)
        assert registry.push(labelled, name, PERSON).returncode == 0
        assert registry.package(name) == {"owner": "ana", "repository": None, "public": False}


def test_what_is_linked_stays_linked(registry: Registry, labelled: Path) -> None:
    name = "ana/cimt/kept"
    assert registry.push(labelled, name, OTHER).returncode == 0
    assert registry.package(name) == {"owner": "ana", "repository": "ana/other", "public": False}
    assert registry.push(labelled, name, WORKFLOW).returncode != 0


@pytest.mark.parametrize(
    ("credential", "existing", "new"),
    [
        (OTHER, "permission_denied: write_package", None),
        (FOREIGN, "permission_denied: write_package", "permission_denied: create_package"),
        (STRANGER, "permission_denied: write_package", "permission_denied: create_package"),
        (
            READING,
            "installation not allowed to Write organization package",
            "installation not allowed to Create organization package",
        ),
        (
            READER,
            "permission_denied: The token provided does not match expected scopes.",
            "permission_denied: The token provided does not match expected scopes.",
        ),
    ],
)
def test_a_refused_push_says_why_at_every_request(
    registry: Registry, plain: Path, credential: str, existing: str, new: str | None
) -> None:
    name = "ana/cimt/refusing"
    if not registry.package(name):
        assert registry.push(plain, name, WORKFLOW).returncode == 0
    digest = f"sha256:{'0' * 64}"
    for package, message in ((name, existing), ("ana/cimt/missing", new)):
        scope = f"repository:{package}:pull,push"
        token = registry.token(credential, scope).raise_for_status().json()["token"]
        for method, rest in (
            ("HEAD", f"blobs/{digest}"),
            ("POST", "blobs/uploads/"),
            ("PATCH", "blobs/uploads/1"),
            ("PUT", "blobs/uploads/1"),
            ("PUT", "manifests/1"),
        ):
            answer = registry.http.request(
                method, f"/v2/{package}/{rest}", headers={"Authorization": f"Bearer {token}"}
            )
            if message is None:
                assert answer.status_code != 403
            else:
                assert answer.status_code == 403, (method, rest)
                assert method == "HEAD" or answer.json() == refused(message)
    assert registry.package("ana/cimt/missing") is None


def test_missing_is_told_apart_from_denied_only_for_who_may_read(
    registry: Registry, plain: Path
) -> None:
    hidden, missing = "ana/cimt/hidden", "ana/cimt/never"
    assert registry.push(plain, hidden, PERSON).returncode == 0
    for credential in (STRANGER, FOREIGN, MUTE):
        for name in (hidden, missing):
            scope = f"repository:{name}:pull"
            token = registry.token(credential, scope).json()["token"]
            headers = {"Authorization": f"Bearer {token}"}
            for rest in ("manifests/1", "tags/list"):
                answer = registry.http.get(f"/v2/{name}/{rest}", headers=headers)
                assert (answer.status_code, answer.json()) == (403, {"errors": [DENIED]})
    for name in (hidden, missing):  # nobody gets no token at all
        answer = registry.token(None, f"repository:{name}:pull")
        assert answer.status_code == 401
        assert answer.json()["errors"][0]["code"] == "UNAUTHORIZED"
        assert registry.token(None, f"repository:{name}:pull,push").status_code == 403
    for credential in (READER, WORKFLOW, READING):
        answer = registry.ask("GET", missing, "manifests/1", credential, "pull")
        assert answer.status_code == 404
        assert answer.json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"
        answer = registry.ask("GET", missing, "tags/list", credential, "pull")
        assert answer.status_code == 404
        assert answer.json()["errors"][0]["code"] == "NAME_UNKNOWN"
        assert "manifest unknown" in registry.pull(missing, credential).stderr
    assert "manifest unknown" in registry.pull(hidden, READER, tag="2").stderr


def test_a_blob_of_an_unreadable_package_cannot_be_mounted(
    registry: Registry, tmp_path: Path
) -> None:
    secret = image(tmp_path / "secret", content=b"only here")
    assert registry.push(secret, "bob/private", FOREIGN).returncode == 0
    layer = json.loads((secret / "index.json").read_text())["manifests"][0]["digest"]
    manifest = json.loads((secret / "blobs/sha256" / layer.removeprefix("sha256:")).read_text())
    digest = manifest["layers"][0]["digest"]
    scopes = ("repository:ana/cimt/mount:pull,push", "repository:bob/private:pull")
    token = registry.token(WORKFLOW, *scopes).raise_for_status().json()["token"]
    answer = registry.http.post(
        "/v2/ana/cimt/mount/blobs/uploads/",
        params={"mount": digest, "from": "bob/private"},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert answer.status_code in {202, 401}, "201 would be the mounted blob"


def test_a_large_layer_passes_without_being_held(registry: Registry, tmp_path: Path) -> None:
    size = 50 * 1024 * 1024
    large = image(tmp_path / "large", content=os.urandom(size))
    name = "ana/cimt/large"
    assert registry.push(large, name, WORKFLOW).returncode == 0  # what a first one takes is taken
    before = registry.memory()
    other = image(tmp_path / "larger", content=os.urandom(size))
    assert registry.push(other, name, WORKFLOW).returncode == 0
    assert registry.pull(name, READING).returncode == 0
    assert registry.memory() - before < size / 2


def test_it_takes_the_real_registry_with_it_and_keeps_its_state(
    tmp_path: Path, plain: Path
) -> None:
    one = Registry(tmp_path)
    authority = (one.state / "ca.crt").read_bytes()
    grant(one.state, "ghp-person", user="ana", scopes=BOTH)
    assert one.push(plain, "ana/api", PERSON).returncode == 0
    children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
    assert len(children) == 1
    assert b"docker-registry" in Path(f"/proc/{children[0]}/cmdline").read_bytes()
    one.process.send_signal(signal.SIGKILL)  # the rudest end
    one.process.wait()
    eventually(lambda: not runs(children[0]), "docker-registry has ended")

    shutil.rmtree(one.certificates)
    again = Registry(tmp_path)
    try:
        assert (again.state / "ca.crt").read_bytes() == authority
        assert again.pull("ana/api", PERSON).returncode == 0
    finally:
        again.process.kill()
        again.process.wait()
