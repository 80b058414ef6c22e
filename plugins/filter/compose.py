"""Ansible filter: services/compose.yaml (Compose specification) to the apps of a panel project.

Runs on the controller. Docker Compose's own program reads the file: it merges, puts variables in and writes
everything in its long form; it sees no secret, only placeholders. What it gives is honoured, warned about or
refused here, key by key.
An app is a dict:
``{name, image, released, ours, env: {KEY: text}, replicas, command, zero_downtime, cap_add, cap_drop,
init, sysctls: {name: text}, groups,
resources: {memoryReservation, memoryLimit (MB), cpuReservation, cpuLimit (cores)},
mounts: [{type: volume, name, mountPath} | {type: bind, hostPath, mountPath} | {type: file, content, mountPath}],
ports: [{published, target, protocol}], domains: [{host, path, port, https, protocol}]}``.
Values and files that hold a secret travel apart from it, so that they can be kept out of logs and diffs.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema
import yaml
from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display

SERVICES = pathlib.Path(__file__).parents[2] / "services"
NAME = re.compile(r"[a-z0-9-_]+")  # as the panel's document has it
CONSTRAINT = re.compile(
    r"\s*(node\.(?:id|hostname|role|platform\.(?:os|arch)|labels\.[\w.-]+)|engine\.labels\.[\w.-]+)"
    r"\s*(==|!=)\s*([\w.-]+)\s*"
)
VARIABLE = re.compile(r"\$\{?(\w+)")
DOMAIN = {"host": "?", "path": "/", "port": "?", "https": "true", "protocol": "http"}
DOMAIN_TEXTS = {
    "host": r"[^\s*/?]*",  # an empty one is a setting's that this shell does not have
    "path": r"/\S*",
    "port": r"\d{1,5}",
    "https": "true|false",
    "protocol": "https?",
}
MB = 2**20
LEAST_LIMIT = 6 * MB  # Docker's own
PANEL_PORTS = {22: "sshd", 80: "the panel's proxy", 443: "the panel's proxy", 3000: "the panel"}
LEAST_POOL = 2  # connections of one process: a statement that takes long, and all others
GRACE_SECONDS = 10  # Docker's own; the panel cannot set another

# What the panel can say, and where what it says is looked at closer, by path. Everything else is refused.
HONOURED: dict[str, set[str]] = {
    "": {
        *("image", "build", "environment", "env_file", "command", "entrypoint", "volumes", "ports", "expose"),
        *("secrets", "configs", "deploy", "scale", "mem_limit", "mem_reservation", "cpus"),
        *("cap_add", "cap_drop", "init", "sysctls", "group_add", "extends", "stop_grace_period"),
        *("x-easypanel", "x-image", "x-release"),
    },
    "build": {"context", "dockerfile"},
    "deploy": {"mode", "replicas", "resources", "update_config", "endpoint_mode", "placement"},
    "deploy.placement": {"constraints"},
    "deploy.resources": {"limits", "reservations"},
    "deploy.resources.limits": {"cpus", "memory"},
    "deploy.resources.reservations": {"cpus", "memory"},
    "deploy.update_config": {"order"},
    "volumes": {"type", "source", "target", "read_only", "bind"},
    "volumes.bind": {"create_host_path"},
    "ports": {"target", "published", "protocol", "mode", "host_ip", "name", "app_protocol"},
    "secrets": {"source", "target"},
    "configs": {"source", "target"},
    "x-easypanel": {"domains"},
    "x-easypanel.domains": {*DOMAIN},
    "x-image": {"tag", "switch"},
    "x-release": {"health"},
    # What stands at the top of the file, beside the services.
    "top.volumes": {"name", "driver", "driver_opts", "external"},
    "top.configs": {"name", "file", "content", "environment", "external"},
    "top.secrets": {"name", "file", "content", "environment", "external"},
}  # fmt: skip
_RESTART = "Swarm starts again every task that ends"
_UPDATE = "the panel has its own: one task after the other, stopped at the first that fails"
_FILE = "files of the panel belong to root and everybody may read them"
# What may be left out without harm, and what happens instead.
WARNED: dict[str, str] = {
    "restart": _RESTART,
    "deploy.restart_policy": _RESTART,
    "depends_on": "Swarm starts all apps at once: each waits itself for what it needs",
    "healthcheck": "the image's own HEALTHCHECK counts; without one an app is up once it has started",
    "container_name": "Swarm names the containers; other apps reach it as $(PROJECT_NAME)_NAME",
    "hostname": "other apps reach it as $(PROJECT_NAME)_NAME",
    "labels": "the panel sets none",
    "deploy.labels": "the panel sets none",
    "networks": "all apps of the project share one network",
    "logging": "what the Docker daemon is told about logs holds for every app",
    "tty": "a task has no terminal",
    "stdin_open": "a task has no terminal",
    "pull_policy": "the panel pulls at every deploy, and a digest only where it is missing",
    "attach": "only Docker Compose on a person's machine reads it",
    "develop": "only Docker Compose on a person's machine reads it",
    "deploy.rollback_config": "a failed release is put back by the release, not by Swarm",
    **{
        f"deploy.update_config.{key}": _UPDATE
        for key in ("parallelism", "delay", "failure_action", "monitor", "max_failure_ratio")
    },
    **{f"{kind}.{key}": _FILE for kind in ("secrets", "configs") for key in ("uid", "gid", "mode")},
    "volumes.consistency": "it says something on a Mac only",
    "platform": "the droplet's own counts",
    **{f"top.{kind}.labels": "the panel sets none" for kind in ("volumes", "configs", "secrets")},
}
# More than "the panel has nothing for it", where there is a way out.
REFUSED: dict[str, str] = {
    "user": "the image's USER counts: set it there",
    "working_dir": "the image's WORKDIR counts: set it there",
    "stop_signal": "the image's STOPSIGNAL counts: set it there",
    "read_only": "the panel cannot make a container's root read-only",
    "network_mode": "an app is always on the panel's own networks",
    "links": "other apps are reached as $(PROJECT_NAME)_NAME",
    "external_links": "other apps are reached as $(PROJECT_NAME)_NAME",
    "profiles": "every app of the file runs; what an environment does without stands in services_leave_out",
    "ulimits": "they are set for the whole host, in the Docker daemon's configuration (role docker)",
    "deploy.placement.preferences": "Swarm spreads the tasks of an app over its nodes as it is",
    "deploy.placement.max_replicas_per_node": "Swarm spreads the tasks of an app over its nodes as it is",
    "volumes.volume": "the panel mounts a volume as it is",
    "volumes.tmpfs": "the panel has no tmpfs",
    **{
        f"build.{key}": "make build takes the folder's Dockerfile as it is"
        for key in ("args", "target", "dockerfile_inline", "additional_contexts", "secrets", "ssh")
    },
}


class _Findings:
    """Everything that is wrong with the file, and everything that runs otherwise than it says."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def refuse(self, where: str, text: str) -> None:
        """A problem; the file is not taken."""
        if (line := f"{where}: {text}") not in self.problems:
            self.problems.append(line)

    def warn(self, where: str, text: str) -> None:
        """Something that is left out, or done otherwise."""
        if (line := f"{where}: {text}") not in self.warnings:
            self.warnings.append(line)

    def keys(self, where: str, mapping: Mapping[str, Any], path: str = "") -> None:
        """Every key at every depth: honoured, warned about or refused. An empty or false value says nothing."""
        for key, value in mapping.items():
            dotted = f"{path}.{key}" if path else str(key)
            if value in (None, False, "", [], {}) or (
                key == "networks" and value == {"default": None}
            ):
                continue
            if dotted in WARNED:
                self.warn(f"{where}.{key}", WARNED[dotted])
            elif key not in HONOURED[path]:
                self.refuse(f"{where}.{key}", REFUSED.get(dotted, "the panel has nothing for it"))
            elif dotted in HONOURED:
                several = value if isinstance(value, list) else [value]
                for index, one in enumerate(several):
                    if isinstance(one, Mapping):
                        place = f"{where}.{key}" + (f".{index}" if isinstance(value, list) else "")
                        self.keys(place, one, dotted)

    def raise_problems(self) -> None:
        """Raise AnsibleFilterError with all problems in one line, if there is one."""
        if self.problems:
            count = f"{len(self.problems)} problems: " if len(self.problems) > 1 else ""
            raise AnsibleFilterError(f"services/compose.yaml: {count}{' | '.join(self.problems)}")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads what Compose wrote: ambiguous texts stand in quotes there, but for ``=``; it writes no dates."""


_Loader.add_constructor("tag:yaml.org,2002:value", _Loader.construct_yaml_str)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str)


@functools.lru_cache(maxsize=32)
def _compose(text: str, values: tuple[tuple[str, str], ...]) -> tuple[int, str, str]:
    """Exit code, YAML and messages of ``docker-compose config``; it needs no daemon.

    Variables come by a file: in its own environment Compose would act on some (OTEL_…, DOCKER_…, COMPOSE_…).
    """
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "$": "\\$", "\n": "\\n", "\r": "\\r"})
    with tempfile.NamedTemporaryFile("w", suffix=".env") as file:
        file.writelines(f'{name}="{value.translate(escapes)}"\n' for name, value in values)
        file.flush()
        command = [
            *(f"{pathlib.Path(sys.executable).parent}/docker-compose", "--env-file", file.name),
            *("--file", "-", "--project-directory", str(SERVICES), "--profile", "*", "config"),
        ]
        try:
            done = subprocess.run(
                command,
                input=text,
                env={"PATH": os.defpath, "HOME": "/nonexistent"},
                cwd="/",  # Compose cannot work in a folder with a % in its name
                capture_output=True,
                text=True,
            )
        except OSError as error:
            raise AnsibleFilterError(
                f"services/compose.yaml: cannot be read: {error.strerror}: {command[0]}. Next: make setup"
            ) from None
    return done.returncode, done.stdout, done.stderr


class _Read:
    """The file as Docker Compose reads it: ``services`` and what they refer to, and the variables without a value."""

    def __init__(self, text: str, plain: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        held = {name: f"secret.{name}.held" for name, value in secrets.items() if value != ""}
        self.secrets = {placeholder: str(secrets[name]) for name, placeholder in held.items()}
        self.empty_secrets = secrets.keys() - held.keys()
        self.values = (
            {name: str(value) for name, value in plain.items()} | dict.fromkeys(secrets, "") | held
        )
        code, written, said = _compose(text, tuple(sorted(self.values.items())))
        self.missing: dict[str, str] = dict.fromkeys(
            re.findall(r'The \\"(\w+)\\" variable is not set', said), ""
        )
        self.missing |= dict(
            re.findall(r"required variable (\w+) is missing a value:? ?(.*)", said)
        )
        told = [line for line in said.splitlines() if line and not line.startswith("time=")]
        self.error = (
            "" if code == 0 or self.missing else re.sub(r"^validating -: ", "", " ".join(told))
        )
        self.document: dict[str, Any] = (
            self._text(_Loader(written).get_single_data()) if code == 0 else {}
        )

    def _text(self, value: Any) -> Any:
        """The value with every ``$$`` as the ``$`` that it stands for."""
        if isinstance(value, dict):
            return {key: self._text(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._text(one) for one in value]
        return value.replace("$$", "$") if isinstance(value, str) else value

    def holds_secret(self, value: Any) -> bool:
        """Whether a secret stands in the value."""
        return any(placeholder in str(value) for placeholder in self.secrets)

    def filled(self, text: Any) -> str:
        """The text with its secrets."""
        for placeholder, value in self.secrets.items():
            text = str(text).replace(placeholder, value)
        return str(text)


def _fields(node: yaml.Node | None) -> dict[str, yaml.Node]:
    """The fields of a mapping as they are written; those of merged mappings (``<<``) too."""
    found: dict[str, yaml.Node] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.tag == "tag:yaml.org,2002:merge":
            for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                found = _fields(one) | found
        else:
            found[str(key.value)] = value
    return found


def _templates(node: yaml.Node | None) -> dict[str, yaml.ScalarNode]:
    """Variables of an environment as they are written, in the file's order: a mapping, or a list of NAME=text."""
    if isinstance(node, yaml.SequenceNode):
        pairs = [
            (item.value.partition("="), item)
            for item in node.value
            if isinstance(item, yaml.ScalarNode)
        ]
        return {name: yaml.ScalarNode(item.tag, text, style="'") for (name, _, text), item in pairs}
    return {
        name: value for name, value in _fields(node).items() if isinstance(value, yaml.ScalarNode)
    }


def _only(root: yaml.Node, leave_out: Sequence[str]) -> str:
    """The file with nothing but an image in the services of ``leave_out``: others may refer to them."""
    scalar = "tag:yaml.org,2002:str"
    empty = yaml.MappingNode(
        "tag:yaml.org,2002:map",
        [(yaml.ScalarNode(scalar, "image"), yaml.ScalarNode(scalar, "left-out"))],
    )
    services = _fields(root).get("services")
    if isinstance(services, yaml.MappingNode):
        services.value = [
            (key, empty if key.value in leave_out else value) for key, value in services.value
        ]
    return str(yaml.serialize(root, width=sys.maxsize))


def _written_otherwise(findings: _Findings, root: yaml.Node, read: _Read) -> None:
    """Find what Compose reads as something else than a person who wrote it would expect."""
    for name, node in _fields(_fields(root).get("services")).items():
        fields = _fields(node)
        environment = (read.document["services"].get(name) or {}).get("environment") or {}
        for key, value in _templates(fields.get("environment")).items():
            meant, got = value.value, environment.get(key)
            if value.style or "$" in meant or got in (None, meant):
                continue
            told = f"{meant} without quotes is read as {got}; quote it"
            tell = findings.warn if meant.lower() == got else findings.refuse
            tell(f"services.{name}.environment.{key}", told)
        for key in ("command", "entrypoint"):
            value = fields.get(key)
            if not isinstance(value, yaml.ScalarNode):
                continue
            texts = [value.value, *(read.values.get(v, "") for v in VARIABLE.findall(value.value))]
            if lost := next(filter(None, map(_shell_operator, texts)), ""):
                findings.refuse(
                    f"services.{name}.{key}",
                    f"a text is no shell: Docker Compose drops everything from '{lost}' on. "
                    'Write a list, such as ["sh", "-c", "…"]',
                )
        volumes = fields.get("volumes")
        for index, item in enumerate(
            volumes.value if isinstance(volumes, yaml.SequenceNode) else ()
        ):
            source = str((_fields(item).get("source") or item).value)
            path = os.path.normpath(SERVICES / source.partition(":")[0])
            if source.startswith("~") or (
                source.startswith("..") and not pathlib.Path(path).is_relative_to(SERVICES.parent)
            ):
                findings.refuse(
                    f"services.{name}.volumes.{index}", f"{source}: it is not of this repository"
                )


def _shell_operator(text: str) -> str:
    """The first operator of a shell in a command that is written as a text; empty without one."""
    words = shlex.shlex(text, posix=True, punctuation_chars=";&|<>")
    words.whitespace_split, words.commenters = True, ""
    try:
        return next((word for word in words if re.fullmatch("[;&|<>]+", word)), "")
    except ValueError:
        return ""  # quotes that do not end: Compose refuses them


def _schema_problems(findings: _Findings, document: Any) -> None:
    """Everything at once that the Compose specification's schema has against the file; Compose tells the first."""
    schema_file = importlib.resources.files("check_jsonschema").joinpath(
        "builtin_schemas/vendor/compose-spec.json"
    )
    validator = jsonschema.validators.validator_for(schema := json.loads(schema_file.read_text()))
    for found in validator(schema).iter_errors(document):
        error = jsonschema.exceptions.best_match([found]) or found
        findings.refuse(".".join(map(str, error.absolute_path)) or "file", error.message)


class _App:
    """One service on its way to an app of the panel."""

    def __init__(
        self, findings: _Findings, read: _Read, name: str, node: yaml.Node, repository: str
    ) -> None:
        self.findings = findings
        self.read = read
        self.name = name
        self.service: dict[str, Any] = read.document["services"][name] or {}
        self.templates = _templates(_fields(node).get("environment"))
        self.repository = repository
        self.where = f"services.{name}"
        self.secret_env: dict[str, str] = {}
        self.secret_files: dict[str, str] = {}

    def _refuse(self, key: str, text: str) -> None:
        self.findings.refuse(f"{self.where}.{key}", text)

    def _warn(self, key: str, text: str) -> None:
        self.findings.warn(f"{self.where}.{key}", text)

    def app(self) -> dict[str, Any]:
        """The app. What is wrong goes to the findings."""
        self.findings.keys(self.where, self.service)
        deploy, image = (
            self.service.get("deploy") or {},
            self.read.filled(self.service.get("image") or ""),
        )
        if not image:
            self._refuse("image", "is missing: the droplet pulls, it does not build")
        for key, only in (("mode", "replicated"), ("endpoint_mode", "vip")):
            if deploy.get(key, only) != only:
                self._refuse(f"deploy.{key}", f"the panel has {only} only")
        self._closer()
        return {
            "name": self.name,
            "image": image,
            "released": "build" in self.service,
            # Pulled with our credentials; nobody else's registry may see them.
            "ours": image.startswith(f"{self.repository}/"),
            "env": self._env(),
            "replicas": int(deploy.get("replicas", self.service.get("scale", 1))),
            "command": self._command(),
            "zero_downtime": (deploy.get("update_config") or {}).get("order") == "start-first",
            "cap_add": self.service.get("cap_add") or [],
            "cap_drop": self.service.get("cap_drop") or [],
            "init": bool(self.service.get("init")),
            "sysctls": {
                key: str(value) for key, value in (self.service.get("sysctls") or {}).items()
            },
            "groups": [str(group) for group in self.service.get("group_add") or []],
            "resources": self._resources(deploy.get("resources") or {}),
            "mounts": [*self._volumes(), *self._files()],
            "ports": self._ports(),
            "domains": self._domains(),
            "placement": list(self._placement(deploy.get("placement") or {})),
        }

    def _placement(self, placement: Mapping[str, Any]) -> Iterator[str]:
        """Which nodes of the Swarm the app may run on; the panel has no field for it, the role cluster keeps it."""
        for index, text in enumerate(placement.get("constraints") or []):
            if found := CONSTRAINT.fullmatch(str(text)):
                yield "".join(found.groups())
            else:
                self._refuse(
                    f"deploy.placement.constraints.{index}",
                    f"'{text}' is no constraint, such as node.labels.disk == ssd or node.hostname != small",
                )

    def _closer(self) -> None:
        """Keys of which it depends on the value whether they do harm."""
        if (
            self.service.get("restart") == "no"
            or ((self.service.get("deploy") or {}).get("restart_policy") or {}).get("condition")
            == "none"
        ):
            self._refuse("restart", "Swarm would start a job again for ever; the panel has no jobs")
        labels = [
            *(self.service.get("labels") or {}),
            *((self.service.get("deploy") or {}).get("labels") or {}),
        ]
        if any(label.startswith("traefik.") for label in labels):
            self._refuse(
                "labels", "the panel's proxy does not read them: declare x-easypanel.domains"
            )
        for name, network in (self.service.get("networks") or {}).items():
            if (self.read.document.get("networks") or {}).get(name, {}).get("external"):
                self._refuse(f"networks.{name}", "an app joins the panel's own networks only")
            if network:
                self._refuse(f"networks.{name}", f"the panel cannot set {', '.join(network)}")
        if grace := self.service.get("stop_grace_period"):
            told = f"the panel cannot set it: Docker gives {GRACE_SECONDS} s"
            (self._warn if _seconds(grace) <= GRACE_SECONDS else self._refuse)(
                "stop_grace_period", told
            )
        build = self.service.get("build")
        if build and (
            build.get("context") != str(SERVICES / self.name)
            or build.get("dockerfile", "Dockerfile") != "Dockerfile"
        ):
            self._refuse("build", f"make build takes ./{self.name} with its Dockerfile")
        test = (self.service.get("healthcheck") or {}).get("test") or []
        if build and test:
            dockerfile = SERVICES / self.name / "Dockerfile"
            text = dockerfile.read_text() if dockerfile.exists() else ""
            own = text.partition("HEALTHCHECK")[2]
            if not own:
                self._refuse(
                    "healthcheck",
                    f"the panel has none: put a HEALTHCHECK into services/{self.name}/Dockerfile",
                )
            elif all(word in own for word in test[1:]):  # the same: nothing to warn of
                self.findings.warnings.remove(f"{self.where}.healthcheck: {WARNED['healthcheck']}")

    def _env(self) -> dict[str, str]:
        """The environment without what holds a secret; that goes to ``secret_env``."""
        plain: dict[str, str] = {}
        others = [name for name in self.read.document["services"] if name != self.name]
        read: dict[str, str | None] = self.service.get("environment") or {}
        order = [
            *(key for key in self.templates if key in read),
            *(key for key in read if key not in self.templates),
        ]
        for key in order:
            value = read[key]
            if value is None:
                self.read.missing.setdefault(key, "")
                continue
            text = self.read.filled(value)
            if not re.fullmatch(r"[A-Za-z_][\w.-]*", key):
                self._refuse(f"environment.{key}", "the panel reads no variable of that name")
            if "\n" in text or "\r" in text:
                self._refuse(f"environment.{key}", "the panel keeps one line a value; encode it")
            for other in others:
                if re.search(rf"(?:^|//|@|,){re.escape(other)}(?::\d+)?(?:[/,?]|$)", str(value)):
                    self._warn(
                        f"environment.{key}",
                        f"'{other}' is reached as $(PROJECT_NAME)_{other} in the panel",
                    )
            empty = VARIABLE.findall(self.templates[key].value) if key in self.templates else []
            secret = self.read.holds_secret(value) or not self.read.empty_secrets.isdisjoint(empty)
            (self.secret_env if secret else plain)[key] = text
        return plain

    def _command(self) -> str | None:
        """Entrypoint and command as one line; the panel gives it to ``sh -c`` in place of the image's ENTRYPOINT."""
        entrypoint, command = self.service.get("entrypoint"), self.service.get("command")
        if entrypoint is None and command is None:
            return None
        words = [*(entrypoint or []), *(command or [])]
        if not words:
            self._refuse("command", "the panel cannot run an image without what its CMD says")
        if self.read.holds_secret(words):
            self._refuse(
                "command", "a secret stands in it and would be shown; give it in the environment"
            )
        if entrypoint is None:
            self._warn(
                "command",
                "runs in place of the image's ENTRYPOINT too; say entrypoint where it is needed",
            )
        return shlex.join(words)

    def _resources(self, resources: Mapping[str, Any]) -> dict[str, float]:
        result: dict[str, float] = {}
        for kind, suffix, short in (
            ("reservations", "Reservation", "mem_reservation"),
            ("limits", "Limit", "mem_limit"),
        ):
            block = resources.get(kind) or {}
            memory = int(block.get("memory") or self.service.get(short) or 0)
            if memory % MB or (kind == "limits" and 0 < memory < LEAST_LIMIT):
                least = f"; Docker's least is {LEAST_LIMIT // MB} MB" if kind == "limits" else ""
                self._refuse(
                    f"deploy.resources.{kind}.memory",
                    f"{memory} bytes are no whole number of MB{least}",
                )
            result[f"memory{suffix}"] = memory // MB
            result[f"cpu{suffix}"] = float(
                block.get("cpus") or (kind == "limits" and self.service.get("cpus")) or 0
            )
        return result

    def _volumes(self) -> Iterator[dict[str, str]]:
        """Volumes, and paths of the host; a file of the repository becomes a file of the panel."""
        declared = self.read.document.get("volumes") or {}
        for index, volume in enumerate(self.service.get("volumes") or []):
            key, source, target = (
                f"volumes.{index}",
                volume.get("source", ""),
                volume.get("target", ""),
            )
            told = f"{source or 'no source'}:{target}"
            of_repository = volume["type"] == "bind" and pathlib.Path(source).is_relative_to(
                SERVICES.parent
            )
            if not target.startswith("/"):
                self._refuse(key, f"{told}: '{target}' is no absolute path")
            if of_repository:
                yield from self._file(key, target, pathlib.Path(source))
                if volume.get("read_only"):
                    self._warn(
                        key, f"{told}: the app may write to it; the next deploy makes it anew"
                    )
            elif volume.get("read_only"):
                self._refuse(key, f"{told}: the panel mounts read-write only")
            elif volume["type"] == "bind":
                yield {"type": "bind", "hostPath": source, "mountPath": target}
            elif volume["type"] != "volume":
                self._refuse(key, f"{told}: the panel has no mount of type {volume['type']}")
            elif not NAME.fullmatch(source):
                self._refuse(key, f"{told}: a volume has a name, made of a-z, 0-9, - and _")
            else:
                options = declared.get(source) or {}
                if (
                    options.get("external")
                    or options.get("name") != f"{self.read.document['name']}_{source}"
                    or options.get("driver", "local") != "local"
                    or options.get("driver_opts")
                ):
                    self._refuse(
                        f"volumes.{source}", "the panel keeps volumes in folders of its own"
                    )
                yield {"type": "volume", "name": source, "mountPath": target}

    def _files(self) -> Iterator[dict[str, str]]:
        """Configs and secrets, as files of the panel."""
        for kind, folder in (("configs", "/"), ("secrets", "/run/secrets/")):
            for index, grant in enumerate(self.service.get(kind) or []):
                source, key = grant["source"], f"{kind}.{index}"
                given = (self.read.document.get(kind) or {}).get(source) or {}
                target = grant.get("target") or source
                target = target if target.startswith("/") else f"{folder}{target}"
                if "file" in given:
                    yield from self._file(
                        key, target, pathlib.Path(given["file"]), kind == "secrets"
                    )
                elif "content" in given:
                    yield from self._content(target, given["content"])
                elif "environment" in given:
                    yield from self._variable(target, given["environment"], kind == "secrets")
                else:
                    self._refuse(
                        key, f"{source}: its text must be known: file, environment or content"
                    )

    def _file(
        self, key: str, target: str, path: pathlib.Path, secret: bool = False
    ) -> Iterator[dict[str, str]]:
        try:
            yield from self._content(target, path.read_text(), secret)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            self._refuse(
                key,
                f"{path} {reason}: nothing but text files of the repository gets to the droplet",
            )

    def _variable(self, target: str, name: str, secret: bool) -> Iterator[dict[str, str]]:
        if name in self.read.values:
            yield from self._content(target, self.read.values[name], secret)
        else:
            self.read.missing.setdefault(name, "")

    def _content(self, target: str, content: str, secret: bool = False) -> Iterator[dict[str, str]]:
        """A file; one that holds a secret has no content here, it goes to ``secret_files``."""
        if secret or self.read.holds_secret(content):
            self.secret_files[target] = self.read.filled(content)
            yield {"type": "file", "mountPath": target}
        else:
            yield {"type": "file", "content": content, "mountPath": target}

    def _ports(self) -> list[dict[str, Any]]:
        ports = []
        for index, port in enumerate(self.service.get("ports") or []):
            key, published = f"ports.{index}", str(port.get("published", ""))
            protocol = port.get("protocol", "tcp")
            if port.get("host_ip", "0.0.0.0") not in ("0.0.0.0", "::"):  # noqa: S104 - what the file says
                self._refuse(
                    key, f"{port['host_ip']}:{published}: the panel publishes on every address"
                )
            if port.get("mode", "ingress") != "ingress":
                self._refuse(key, f"the panel has no mode {port['mode']}")
            if protocol not in ("tcp", "udp"):
                self._refuse(key, f"the panel has no {protocol}")
            if not published.isdecimal() or "target" not in port:
                self._refuse(
                    key, f"{port.get('target')} needs one published port, not '{published}'"
                )
            elif int(published) in PANEL_PORTS:
                self._refuse(
                    key,
                    f"{published} is taken by {PANEL_PORTS[int(published)]}; x-easypanel.domains gives an app a name",
                )
            else:
                opened = f"firewall_public_{protocol}_ports"
                self._warn(
                    key, f"{published}: the host's firewall keeps it shut unless {opened} names it"
                )
                ports.append(
                    {
                        "published": int(published),
                        "target": int(port["target"]),
                        "protocol": protocol,
                    }
                )
        return ports

    def _domains(self) -> list[dict[str, Any]]:
        for key in ("x-easypanel", "x-image", "x-release"):
            if not isinstance(self.service.get(key) or {}, dict):
                self._refuse(key, "it is no mapping")
                return []
        domains = (self.service.get("x-easypanel") or {}).get("domains") or []
        if not isinstance(domains, list) or not all(isinstance(one, dict) for one in domains):
            self._refuse("x-easypanel.domains", "it is no list of mappings")
            return []
        result = []
        for index, domain in enumerate(domains):
            given = {key: self.read.filled(value) for key, value in {**DOMAIN, **domain}.items()}
            given["https"] = given["https"].lower()
            for key, pattern in DOMAIN_TEXTS.items():
                if not re.fullmatch(pattern, given[key]):
                    self._refuse(f"x-easypanel.domains.{index}.{key}", f"'{given[key]}' cannot be")
            if given["port"].isdecimal():
                typed = {"port": int(given["port"]), "https": given["https"] == "true"}
                result.append({key: typed.get(key, given[key]) for key in DOMAIN})
        return result


def _seconds(duration: str) -> float:
    """Seconds of a duration as Compose writes it, such as 1m30s."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001, "us": 1e-6, "ns": 1e-9}
    return sum(
        float(number) * units[unit]
        for number, unit in re.findall(r"([\d.]+)(ms|us|ns|[hms])", duration)
    )


def _between(findings: _Findings, apps: Sequence[Mapping[str, Any]]) -> None:
    """What two apps may not both have."""
    owners: dict[tuple[str, str], str] = {}
    for app in apps:
        claims = {("volume", mount["name"]) for mount in app["mounts"] if mount["type"] == "volume"}
        claims |= {("port", f"{port['published']}/{port['protocol']}") for port in app["ports"]}
        claims |= {
            ("domain", domain["host"] + domain["path"])
            for domain in app["domains"]
            if domain["host"]
        }
        for kind, what in sorted(claims):
            if (kind, what) in owners:
                hint = "; the panel keeps a volume for each app" if kind == "volume" else ""
                findings.refuse(
                    f"services.{app['name']}",
                    f"{kind} {what} is that of {owners[kind, what]}{hint}",
                )
            owners.setdefault((kind, what), app["name"])


def panel_apps(
    text: str,
    environment: dict[str, str],
    secrets: dict[str, str] | None = None,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """What the Compose file declares.

    ``{"apps": [app], "secret_env": {app name: {KEY: text}}, "secret_files": {app name: {mountPath: text}},
    "warnings": [text]}``. ``environment`` and ``secrets`` fill its variables; a value that holds a secret goes to
    ``secret_env``, a file that does to ``secret_files`` (its mount has no content).
    Apps in ``leave_out`` are passed over, and their variables are not asked for.
    Raises AnsibleFilterError with one line that names everything that is wrong.
    """
    findings = _Findings()
    try:
        root = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        raise _not_yaml(error) from None
    if leave_out and root is not None:
        text = _only(root, leave_out)
    read = _Read(text, environment, secrets or {})
    if "include" in _fields(root):
        findings.refuse("include", "write its services into this file: other verbs read it too")
    declared = read.document.get("services") or {}
    if read.document:
        _written_otherwise(findings, root, read)
        for kind in ("volumes", "configs", "secrets"):
            for name, options in (read.document.get(kind) or {}).items():
                findings.keys(f"{kind}.{name}", options or {}, f"top.{kind}")
        for name, network in (read.document.get("networks") or {}).items():
            if {key for key, value in network.items() if value} - {"name", "external"}:
                findings.warn(f"networks.{name}", WARNED["networks"])
    else:  # Compose stops at the first: look through the rest without it
        document = _Loader(text).get_single_data()
        _schema_problems(findings, document)
        if not findings.problems and not read.missing:
            findings.refuse("file", read.error)
        if isinstance(document, dict) and isinstance(document.get("services"), dict):
            for name, service in document["services"].items():
                findings.keys(f"services.{name}", service if isinstance(service, dict) else {})
    repository = read.filled(read.values.get("IMAGE_REPOSITORY", ""))
    written = _fields(_fields(root).get("services"))
    for name in written:
        if not NAME.fullmatch(name):
            findings.refuse(f"services.{name}", "a name is made of a-z, 0-9, - and _")
    found = [
        _App(findings, read, name, written[name], repository)
        for name in written
        if name in declared and name not in leave_out
    ]
    apps = [one.app() for one in found]
    _between(findings, apps)
    if read.missing:
        names = ", ".join(
            name + (f" ({told})" if told else "") for name, told in sorted(read.missing.items())
        )
        findings.refuse(
            "variables", f"no value for {names}; see docs/setup.md for where each comes from"
        )
    findings.raise_problems()
    for warning in findings.warnings:
        Display().warning(f"services/compose.yaml: {warning}")
    return {
        "apps": apps,
        "secret_env": {one.name: one.secret_env for one in found if one.secret_env},
        "secret_files": {one.name: one.secret_files for one in found if one.secret_files},
        "warnings": findings.warnings,
    }


def _loaded(text: str) -> dict[str, Any]:
    """The file as data. Raises AnsibleFilterError."""
    try:
        return dict(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise _not_yaml(error) from None


def _not_yaml(error: yaml.YAMLError) -> AnsibleFilterError:
    return AnsibleFilterError(f"services/compose.yaml: not YAML: {' '.join(str(error).split())}")


def declared_services(text: str) -> dict[str, dict[str, Any]]:
    """What the verbs of this repository must know of each app, in the file's order, without any value of a setting.

    ``{app: {"released": bool, "tag": program or "", "switch": variable or "", "health": path,
    "domain": template or ""}}``. An image of ours is made of the folder that has the app's name: where it is released
    by digest, or has a program that prints its tag. Paths are relative to the file's own folder.
    """
    result = {}
    for name, service in _loaded(text)["services"].items():
        image = service.get("x-image") or {}
        domains = (service.get("x-easypanel") or {}).get("domains") or [{}]
        result[name] = {
            "released": "build" in service,
            "tag": image.get("tag", ""),
            "switch": image.get("switch", ""),
            "health": (service.get("x-release") or {}).get("health", "/healthz"),
            "domain": str(domains[0].get("host", "")),
        }
    return result


def panel_domains(text: str, environment: dict[str, str]) -> dict[str, str]:
    """The first domain of every app that has one: ``{app: host}``; empty where its variable is.

    Raises AnsibleFilterError when Docker Compose cannot put the variables in.
    """
    hosts = {name: app["domain"] for name, app in declared_services(text).items() if app["domain"]}
    named = {
        name: environment[name]
        for name in re.findall(r"\w+", " ".join(hosts.values()))
        if name in environment
    }
    apps = {name: {"image": "-", "environment": {"host": host}} for name, host in hosts.items()}
    read = _Read(json.dumps({"services": apps}), named, {})
    if not read.document:
        raise AnsibleFilterError(
            f"services/compose.yaml: domains: {read.error or ', '.join(read.missing)}"
        )
    return {name: read.document["services"][name]["environment"]["host"] for name in hosts}


def database_pool(text: str, connections: str | int) -> int:
    """How many connections each process of the app that gets ``DATABASE_POOL`` may hold, so that they fit together.

    ``connections`` is what the database's pooler gives its role. A release that starts the new tasks first may run
    as many of them beside the old ones. Raises AnsibleFilterError, with the arithmetic, where too few are left.
    """
    for name, service in _loaded(text)["services"].items():
        if "${DATABASE_POOL}" not in (service.get("environment") or {}).values():
            continue
        deploy = service.get("deploy") or {}
        replicas = int(deploy.get("replicas", 1))
        twice = (deploy.get("update_config") or {}).get("order") == "start-first"
        each = 2 if twice else 1
        processes = max(replicas, 1) * each
        try:
            pool = int(connections) // processes
        except ValueError:
            raise AnsibleFilterError(
                f"DATABASE_CONNECTIONS is not a whole number: {connections!r}"
            ) from None
        if pool < LEAST_POOL:
            most = int(connections) // LEAST_POOL // each
            beside = ", and as many beside them while a release replaces them," if twice else ""
            raise AnsibleFilterError(
                f"services/compose.yaml: services.{name}.deploy.replicas: {replicas} replicas{beside} are {processes} "
                f"processes of {LEAST_POOL} connections or more: {processes * LEAST_POOL}, and DATABASE_CONNECTIONS is "
                f"{connections}. Next: at most {most} replicas; or a larger pool size in Supabase "
                "(Database, Settings, Connection pooling), and the same as DATABASE_CONNECTIONS (docs/scaling.md)"
            )
        return pool
    return 0


def app_placements(apps: Sequence[Mapping[str, Any]], project: str) -> dict[str, list[str]]:
    """Constraints by service of Swarm, of every app: ``{"cimt_api": [], "cimt_n8n": ["node.role==manager"]}``.

    What has a mount stays with the manager: the panel keeps volumes and files in folders there.
    """
    return {
        f"{project}_{app['name']}": sorted(
            {*app["placement"], *(["node.role==manager"] if app["mounts"] else [])}
        )
        for app in apps
    }


class FilterModule:
    """Filters of the services role and of the inventory."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name in a template to function."""
        return {
            "panel_apps": panel_apps,
            "panel_domains": panel_domains,
            "app_placements": app_placements,
            "declared_services": declared_services,
            "database_pool": database_pool,
        }
