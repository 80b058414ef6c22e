"""tools/build.sh, with a stand-in for buildah: what is asked of it, and what is written down."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.certificate import make_certificate

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "ab" * 32
BUILDAH = f"""#!/bin/bash
printf '%s\\n' "$*" >>"$CALLS"
while [ $# -gt 0 ]; do
  if [ "$1" = --digestfile ]; then printf '{DIGEST}' >"$2"; fi
  shift
done
exit "${{BUILDAH_EXIT:-0}}"
"""
# `python -m local port registry`, `python -m local base SERVICE`.
PYTHON = """#!/bin/bash
printf 'python %s\\n' "$*" >>"$CALLS"
case $* in
  '-m local port registry') echo "$REGISTRY_PORT" ;;
  '-m local base n8n' | '-m local base api') echo "localhost/cimt/base:${*: -1}" ;;
  *) exit 1 ;;
esac
"""
SKOPEO = """#!/bin/bash
printf 'skopeo %s\\n' "$*" >>"$CALLS"
[ -z "${SKOPEO_EXIT:-}" ] || { echo 'reading manifest 1 in example.com/cimt/n8n: manifest unknown' >&2; exit 1; }
echo "sha256:$(printf '%064d' 7) $(printf '%040d' 8)"
"""
REPOSITORY = "example.com/cimt"


class Checkout:
    """A small repository in a folder with a space, and buildah and its neighbours as we want them."""

    def __init__(self, root: Path) -> None:
        self.root = root / "a checkout"
        self.registry = ""
        self.calls = root / "calls"
        self.result = self.root / ".local/build/api.json"
        programs = root / "bin"
        programs.mkdir()
        (self.root / ".venv/bin").mkdir(parents=True)
        for place, text in (
            (programs / "buildah", BUILDAH),
            (programs / "skopeo", SKOPEO),
            (self.root / ".venv/bin/python", PYTHON),
        ):
            place.write_text(text)
            place.chmod(0o755)
        self.path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        service = self.root / "services/api"
        service.mkdir(parents=True)
        (self.root / "tools").mkdir()
        for name in ("build.sh", "source.sh"):
            shutil.copy(ROOT / "tools" / name, self.root / "tools")
        for name in ("services/n8n", "services/etl", "tools/services", "plugins/filter"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy(ROOT / "services/compose.yaml", self.root / "services")
        web = self.root / "services/web"
        web.mkdir()
        for folder in (service, web):
            (folder / "Dockerfile").write_text("FROM scratch\n")
        # What is made before the image.
        (web / "build.sh").write_text('#!/bin/sh\necho "web is made" >>"$CALLS"\n')
        (web / "build.sh").chmod(0o755)
        (service / "code.py").write_text("1\n")
        (self.root / ".gitignore").write_text("/.local/\n/.venv/\n__pycache__/\n")
        self.git("init", "-q")
        self.commit()

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.root), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "test")

    def build(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.root / "tools/build.sh"), *arguments, **environment)

    def services(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "tools.services", *arguments, **environment)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env=os.environ
            | {"PATH": self.path, "CALLS": str(self.calls), "SSL_CERT_FILE": ""}
            | {"IMAGE_REPOSITORY": REPOSITORY, "GITHUB_REPOSITORY": "", "GITHUB_SERVER_URL": ""}
            | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def revision(self) -> str:
        result = self.build("api")
        assert result.returncode == 0, result.stderr
        return str(json.loads(self.result.read_text())["revision"])


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Port of something that answers as a registry does, by TLS."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    make_certificate(tmp_path / "certificate", "registry.test")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "certificate/ca.crt", tmp_path / "certificate/server.key")
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever).start()
        yield str(server.server_port)
        server.shutdown()


def test_the_result_names_image_digest_revision_and_where_it_was_pushed(checkout: Checkout) -> None:
    result = checkout.build("api")
    assert result.returncode == 0, result.stderr
    assert json.loads(checkout.result.read_text()) == {
        "image": f"{REPOSITORY}/api@{DIGEST}",
        "digest": DIGEST,
        "revision": checkout.git("rev-parse", "HEAD"),
        "pushed_to": f"{REPOSITORY}/api",
    }
    assert f"{REPOSITORY}/api@{DIGEST}" in result.stdout
    assert [path.name for path in checkout.result.parent.iterdir()] == ["api.json"]


def test_for_the_local_droplet_registry_and_base_are_those_of_this_machine(
    checkout: Checkout, registry: str
) -> None:
    result = checkout.build("api", "--local", REGISTRY_PORT=registry)
    assert result.returncode == 0, result.stderr
    built = json.loads(checkout.result.read_text())
    assert built["image"] == f"10.0.2.2:{registry}/cimt/api@{DIGEST}"
    assert built["pushed_to"] == f"127.0.0.1:{registry}/cimt/api"
    *_, build, push = checkout.calls.read_text().splitlines()
    assert "BASE_IMAGE=localhost/cimt/base:api" in build
    assert "--tls-verify=false" in push


def test_buildah_gets_revision_certificate_and_tag(checkout: Checkout) -> None:
    certificate = checkout.root.parent / "ca.crt"
    certificate.write_text("a certificate\n")
    assert checkout.build("api", SSL_CERT_FILE=str(certificate)).returncode == 0
    build, push = checkout.calls.read_text().splitlines()
    assert build.startswith("bud ")
    # The OCI format has no HEALTHCHECK.
    assert "--format docker" in build
    assert f"REVISION={checkout.git('rev-parse', 'HEAD')}" in build
    assert "BASE_IMAGE" not in build
    assert f"--secret id=ca,src={certificate}" in build
    assert push.startswith("push ")
    assert push.endswith(f"{REPOSITORY}/api:{checkout.git('rev-parse', 'HEAD')}")
    assert "tls-verify" not in push


@pytest.mark.parametrize("there", [True, False])
def test_n8n_is_built_only_where_its_version_is_new(
    checkout: Checkout, registry: str, *, there: bool
) -> None:
    tag = subprocess.run(
        [checkout.root / "services/n8n/tag.sh"], capture_output=True, text=True, check=True
    ).stdout.strip()
    for options, image in (
        (["--local"], f"127.0.0.1:{registry}/cimt/n8n:{tag}"),
        ([], f"{REPOSITORY}/n8n:{tag}"),
    ):
        checkout.calls.unlink(missing_ok=True)
        result = checkout.services(
            *("build", "n8n", "--missing", *options),
            REGISTRY_PORT=registry,
            SKOPEO_EXIT="" if there else "1",
        )
        assert result.returncode == 0, result.stderr
        calls = checkout.calls.read_text()
        assert f"docker://{image}\n" in calls
        assert (f"the registry has {image}" in result.stdout) is there
        # The base of n8n takes ten minutes: it is not even asked for.
        assert ("bud " in calls) is not there
        assert ("local base n8n" in calls) is (bool(options) and not there)
        if not there:
            assert calls.splitlines()[-1].endswith(image)


@pytest.mark.parametrize(
    ("origin", "runner", "source"),
    [
        ("", "", ""),
        ("/srv/cimt.git", "", ""),
        ("https://github.com.example.com/Example/cimt", "", ""),
        ("https://github.com/Example/cimt.git", "", "https://github.com/Example/cimt"),
        ("https://me:secret@github.com/Example/cimt", "", "https://github.com/Example/cimt"),
        ("git@github.com:Example/cimt.git", "", "https://github.com/Example/cimt"),
        ("ssh://git@github.com/Example/cimt.git", "", "https://github.com/Example/cimt"),
        ("/srv/cimt.git", "Example/cimt", "https://github.com/Example/cimt"),
    ],
)
def test_every_image_names_repository_and_revision(
    checkout: Checkout, origin: str, runner: str, source: str
) -> None:
    """By this label ghcr.io links a package that a person pushed: the repository's workflow may then write it."""
    if origin:
        checkout.git("remote", "add", "origin", origin)
    assert checkout.build("n8n", GITHUB_REPOSITORY=runner).returncode == 0
    build = checkout.calls.read_text().splitlines()[0]
    assert f"--label org.opencontainers.image.revision={checkout.git('rev-parse', 'HEAD')}" in build
    assert ("image.source=" in build) is bool(source)
    assert f"--label org.opencontainers.image.source={source} " in build or not source
    assert "secret" not in build


def test_no_image_keeps_what_its_base_says_of_itself() -> None:
    """The official image of n8n names n8n's repository: ghcr.io would look for the package's owner there."""
    text = (ROOT / "services/n8n/Dockerfile").read_text()
    for name in ("title", "description", "url", "source", "version"):
        assert f"org.opencontainers.image.{name}=" in text


@pytest.fixture
def ghcr(checkout: Checkout) -> Iterator[dict[str, tuple[int, str]]]:
    """What a registry that asks for a token answers to `token` and `manifest`, for the real skopeo."""
    answers = {"token": (200, "")}

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"/token": "token", "/v2/": "ping"}.get(self.path.partition("?")[0], "manifest")
            status, code = {"ping": (401, "UNAUTHORIZED"), **answers}[known]
            word = code.lower().replace("_", " ")
            body = {"errors": [{"code": code, "message": word}]} if code else {"token": "t"}
            self.send_response(status)
            if known == "ping":
                where = f'realm="http://{self.headers["Host"]}/token",service="ghcr.io"'
                self.send_header("WWW-Authenticate", f"Bearer {where}")
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    (checkout.root.parent / "bin/skopeo").unlink()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        where = f"127.0.0.1:{server.server_port}"
        settings = checkout.root.parent / ".config/containers"
        settings.mkdir(parents=True)
        text = f'[[registry]]\nlocation = "{where}"\ninsecure = true\n'
        (settings / "registries.conf").write_text(text)
        checkout.registry = where
        threading.Thread(target=server.serve_forever).start()
        yield answers
        server.shutdown()


NOT_THERE = ((404, "MANIFEST_UNKNOWN"), (404, "NAME_UNKNOWN"))
DENIED = ((403, "DENIED"), (401, "UNAUTHORIZED"))


@pytest.mark.parametrize(
    ("place", "answer", "outcome"),
    [
        *(("manifest", answer, "built") for answer in NOT_THERE),
        *((place, answer, "denied") for place in ("manifest", "token") for answer in DENIED),
        *((place, (500, "UNKNOWN"), "no answer") for place in ("manifest", "token")),
    ],
)
def test_only_what_the_registry_says_it_has_not_is_built(
    checkout: Checkout,
    ghcr: dict[str, tuple[int, str]],
    place: str,
    answer: tuple[int, str],
    outcome: str,
) -> None:
    ghcr[place] = answer
    if place == "token":
        ghcr["manifest"] = (404, "MANIFEST_UNKNOWN")
    result = checkout.services(
        *("build", "n8n", "--missing"),
        HOME=str(checkout.root.parent),
        XDG_CONFIG_HOME="",
        IMAGE_REPOSITORY=f"{checkout.registry}/example",
    )
    built = checkout.calls.exists() and "bud " in checkout.calls.read_text()
    assert built is (outcome == "built"), result.stderr
    assert result.returncode == (0 if built else 1), result.stderr
    last = (result.stderr.splitlines() or [""])[-1]
    assert (f"buildah login {checkout.registry}" in last) is (outcome == "denied"), last
    assert ("Next: try again when it answers" in last) is (outcome == "no answer"), last


def test_a_registry_that_is_away_does_not_count_as_empty(checkout: Checkout) -> None:
    (checkout.root.parent / "bin/skopeo").unlink()
    result = checkout.services("build", "n8n", "--missing", IMAGE_REPOSITORY="127.0.0.1:1/example")
    assert result.returncode == 1
    assert "Next: try again when it answers" in result.stderr
    assert not checkout.calls.exists()


@pytest.mark.parametrize(
    "words",
    [
        "trying to reuse blob sha256:ab at destination: failed to read from destination repository x: 403 (Forbidden)",
        "writing blob: initiating layer upload to /v2/x/blobs/uploads/: denied: permission_denied: write_package",
        "denied: installation not allowed to Write organization package",
        "denied: requested access to the resource is denied",
        "Requesting bearer token: invalid status code from registry 403 (Forbidden)",
    ],
)
def test_a_push_that_is_denied_says_how_the_package_is_linked(
    checkout: Checkout, words: str
) -> None:
    program = checkout.root.parent / "bin/buildah"
    program.write_text(f'#!/bin/bash\n[ "$1" != push ] || {{ echo "{words}" >&2; exit 125; }}\n')
    result = checkout.build("api", GITHUB_REPOSITORY="Example/cimt")
    assert result.returncode == 1
    said, last = result.stderr.splitlines()
    assert said == words
    assert "Manage Actions access → Add Repository Example/cimt, role Write" in last
    assert "buildah login example.com" in last
    assert not checkout.result.exists()


def test_what_is_released_by_digest_is_built_without_being_named(checkout: Checkout) -> None:
    assert checkout.services("build").returncode == 0
    calls = checkout.calls.read_text()
    assert calls.count("buildah bud") + calls.count("\nbud ") + calls.startswith("bud ") == 2
    assert calls.index("web is made") < calls.index("web:"), (
        "what the image takes is made before it"
    )
    assert calls.count("skopeo inspect") == 2, "the others have a tag, which the registry has"
    built = json.loads(checkout.services("builds").stdout)
    assert set(built) == {"api", "web", "n8n", "etl"}
    assert built["api"]["revision"] == checkout.git("rev-parse", "HEAD")
    # What the registry had is released by its digest, and attested by the run that made it.
    assert built["n8n"] == {"image": f"{REPOSITORY}/n8n@sha256:{7:064d}", "revision": f"{8:040d}"}
    kept = json.loads((checkout.root / ".local/build/n8n.json").read_text())
    assert "pushed_to" not in kept
    checkout.calls.unlink()
    assert checkout.services("build", "--no-push").returncode == 0
    assert "skopeo" not in checkout.calls.read_text()


def test_an_app_that_is_not_declared_is_refused(checkout: Checkout) -> None:
    result = checkout.services("build", "shop'; touch x")
    assert result.returncode == 2
    assert "Next: make build SERVICE=api (or: api, web, n8n, etl)" in result.stderr
    assert not checkout.calls.exists()


def test_a_changed_tree_has_another_revision(checkout: Checkout) -> None:
    service = checkout.root / "services/api"
    clean = checkout.revision()
    assert clean == checkout.git("rev-parse", "HEAD")
    (service / "__pycache__").mkdir()
    (service / "__pycache__/code.pyc").write_text("2\n")
    (checkout.root / "elsewhere").write_text("not the service's\n")
    assert checkout.revision() == clean
    (service / "code.py").write_text("2\n")
    changed = checkout.revision()
    assert changed.startswith(f"{clean}-dirty-")
    assert len(changed) == len(clean) + len("-dirty-") + 8
    assert checkout.revision() == changed
    (service / "new.py").write_text("3\n")
    added = checkout.revision()
    (service / "code.py").unlink()
    assert len({clean, changed, added, checkout.revision()}) == 4
    checkout.commit()
    assert checkout.revision() == checkout.git("rev-parse", "HEAD")


def test_a_failed_build_keeps_the_last_result(checkout: Checkout) -> None:
    checkout.revision()
    before = checkout.result.read_text()
    result = checkout.build("api", BUILDAH_EXIT="7")
    assert result.returncode != 0
    assert checkout.result.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which service"),
        (["api"], "not set: IMAGE_REPOSITORY"),
        (["shop"], "services/shop/Dockerfile"),
        (["api", "--lokal"], "--lokal"),
        (["api", "--local"], "python -m local clouds start"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_built(
    checkout: Checkout, arguments: list[str], says: str
) -> None:
    result = checkout.build(*arguments, IMAGE_REPOSITORY="", REGISTRY_PORT="1")
    assert result.returncode != 0
    assert says in result.stderr
    assert not checkout.calls.exists() or "bud" not in checkout.calls.read_text()
