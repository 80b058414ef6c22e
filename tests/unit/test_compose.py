"""services/compose.yaml to panel apps: every key is honoured, warned about or refused by name; secrets stay apart."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import compose
from testbed import simulated_droplet

ROOT = pathlib.Path(__file__).parents[2]
PLAIN = {
    "V": "v",
    "EMPTY": "",
    "IMAGE_REPOSITORY": "registry.example/cimt",
    "DOLLAR": "a$b $$c",
    "SHELLY": "1; 2",
}
SECRETS = {"S": "p$w; 'x'", "NONE": ""}


def refused(text: str, plain: dict[str, str] | None = None) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(AnsibleFilterError, match=r"^services/compose\.yaml: [^\n]+$") as caught:
        compose.panel_apps(text, PLAIN if plain is None else plain, SECRETS)
    return str(caught.value.message)


def together(cases: dict[str, Any], rest: str = "") -> str:
    """One file of which each case is a service: Compose is asked once, and a message names all of them."""
    services = "".join(f"  c{n}:\n{case}" for n, case in enumerate(cases))
    return f"services:\n{services}{rest}"


def lines(*fields: str, image: str = "x") -> str:
    """A service with these fields, one a line."""
    return "".join(f"    {field}\n" for field in (f"image: {image}", *fields))


HONOURED: dict[str, dict[str, Any]] = {
    # Variables, as Compose has them: nested defaults, alternatives, dollars, and what a value itself holds.
    lines('environment: {A: "${U:-x${W:-y}}", B: "${V:+z}", C: "${EMPTY:+z}", D: $$5, E: "${DOLLAR}", F: $V}'): {
        "env": {"A": "xy", "B": "z", "C": "", "D": "$5", "E": "a$b $$c", "F": "v"}
    },
    lines("environment: {A: 12:30, B: on, C: true, D: 5, E: '010', F: ''}"): {
        "env": {"A": "12:30", "B": "on", "C": "true", "D": "5", "E": "010", "F": ""}
    },
    lines("environment: [Z=1, A=b=c, 'B=$(PROJECT_NAME)_db', V]"): {
        "env": {"Z": "1", "A": "b=c", "B": "$(PROJECT_NAME)_db", "V": "v"}
    },
    lines("environment: &e {A: a}"): {"env": {"A": "a"}},
    lines("environment: {<<: *e, B: b}"): {"env": {"A": "a", "B": "b"}},
    lines("env_file: [loopback.env]"): {},  # read as Compose reads it, and merged
    # Commands: words stay words, `$` is the container's.
    lines('entrypoint: ["sh", "-c"]', 'command: ["echo hello world; echo $$HOME ${V}"]'): {
        "command": "sh -c 'echo hello world; echo $HOME v'"
    },
    lines('entrypoint: /bin/a "b c"'): {"command": "/bin/a 'b c'"},
    # Sizes and replicas.
    lines("deploy: {replicas: 2, resources: {limits: {memory: 1.5g, cpus: '0.5'}, reservations: {memory: 64m}}}"): {
        "replicas": 2,
        "resources": {"memoryLimit": 1536, "memoryReservation": 64, "cpuLimit": 0.5, "cpuReservation": 0.0},
    },
    lines("mem_limit: 6m", "cpus: 0.25", "scale: 3"): {
        "replicas": 3,
        "resources": {"memoryLimit": 6, "memoryReservation": 0, "cpuLimit": 0.25, "cpuReservation": 0.0},
    },
    lines("deploy: {update_config: {order: start-first}}"): {"zero_downtime": True},
    lines("init: true", "cap_add: [NET_ADMIN]", "sysctls: {net.core.somaxconn: 1024}", "group_add: ['1000']"): {
        "init": True,
        "cap_add": ["NET_ADMIN"],
        "sysctls": {"net.core.somaxconn": "1024"},
        "groups": ["1000"],
    },
    # Mounts: volumes, paths of the host, and files of the repository.
    lines("volumes: [data:/data, /srv/files:/files, ./etl/sources.yaml:/etc/s.yaml:ro]"): {
        "mounts": [
            {"type": "volume", "name": "data", "mountPath": "/data"},
            {"type": "bind", "hostPath": "/srv/files", "mountPath": "/files"},
            {
                "type": "file",
                "content": (ROOT / "services/etl/sources.yaml").read_text(),
                "mountPath": "/etc/s.yaml",
            },
        ]
    },
    lines("configs: [c, {source: c, target: /etc/c}]", "secrets: [s]"): {
        "mounts": [
            {"type": "file", "content": "port $5 v", "mountPath": "/c"},
            {"type": "file", "content": "port $5 v", "mountPath": "/etc/c"},
            {"type": "file", "mountPath": "/run/secrets/s"},
        ]
    },
    lines("ports: ['8080:80', '5353:53/udp']", "expose: ['9']"): {
        "ports": [
            {"published": 8080, "target": 80, "protocol": "tcp"},
            {"published": 5353, "target": 53, "protocol": "udp"},
        ]
    },
    lines('x-easypanel: {domains: [{host: "$V.a", port: "80", https: "false"}, {host: b, port: 8, path: /p}]}'): {
        "domains": [
            {"host": "v.a", "path": "/", "port": 80, "https": False, "protocol": "http"},
            {"host": "b", "path": "/p", "port": 8, "https": True, "protocol": "http"},
        ]
    },
    # Our credentials go to our registry only, however its variable is written.
    lines(image="$IMAGE_REPOSITORY/mine"): {"ours": True, "image": "registry.example/cimt/mine"},
    lines(image="registry.example/cimt.evil/x"): {"ours": False},
    lines("extends: {service: c0}"): {"env": {"A": "xy", "B": "z", "C": "", "D": "$5", "E": "a$b $$c", "F": "v"}},
}  # fmt: skip
DECLARED = """
configs: {c: {content: "port $$5 ${V}"}}
secrets: {s: {environment: S}, elsewhere: {external: true}}
volumes: {data: , nfs: {driver: nfs}}
networks: {outside: {external: true}}
"""


def test_what_the_panel_can_say_comes_out_as_docker_compose_reads_it() -> None:
    text = together(HONOURED, DECLARED)
    declared = compose.panel_apps(text, PLAIN, SECRETS)
    apps = {app["name"]: app for app in declared["apps"]}
    for number, (case, fields) in enumerate(HONOURED.items()):
        app = apps[f"c{number}"]
        assert {key: app[key] for key in fields} == fields, case
        if "env_file" in case:
            assert app["env"]["N8N_TAG"] == "none"
    assert list(declared["secret_files"].values()) == [{"/run/secrets/s": SECRETS["S"]}]
    assert SECRETS["S"] not in str(declared["apps"])


WARNED = {
    lines("platform: linux/arm64"): "platform: the droplet's own counts",
    lines("restart: always"): "restart: Swarm starts again every task that ends",
    lines("depends_on: [c0]"): "depends_on: Swarm starts all apps at once",
    lines("healthcheck: {test: [CMD, x]}"): "healthcheck: the image's own HEALTHCHECK counts",
    lines("container_name: db"): "container_name: Swarm names the containers",
    lines("networks: [inside]"): "networks: all apps of the project share one network",
    lines("labels: [a=b]"): "labels: the panel sets none",
    lines("command: [a]"): "command: runs in place of the image's ENTRYPOINT too",
    lines(
        "ports: ['8081:80']"
    ): "8081: the host's firewall keeps it shut unless firewall_public_tcp_ports",
    lines("deploy: {update_config: {parallelism: 2}}"): "parallelism: the panel has its own",
    lines(
        "environment: {A: 'redis://:p@c0:6379/0'}"
    ): "environment.A: 'c0' is reached as $(PROJECT_NAME)_c0",
    lines("environment: {A: True}"): "environment.A: True without quotes is read as true",
    lines("volumes: [./etl/sources.yaml:/s:ro]"): "the app may write to it",
    lines("stop_grace_period: 5s"): "stop_grace_period: the panel cannot set it: Docker gives 10 s",
    lines("logging: {driver: none}"): "logging: what the Docker daemon is told",
    lines(
        "secrets: [{source: s, mode: 0400}]"
    ): "secrets.0.mode: files of the panel belong to root",
}


def test_what_runs_otherwise_than_the_file_says_is_told() -> None:
    text = together(WARNED, DECLARED.replace("networks: {", "networks: {inside: , "))
    warnings = compose.panel_apps(text, PLAIN, SECRETS)["warnings"]
    for number, told in enumerate(WARNED.values()):
        of_app = [line for line in warnings if line.startswith(f"services.c{number}.")]
        assert any(told in line for line in of_app), (told, of_app)


REFUSED = {
    lines("volumes: [data:/x:ro]"): "volumes.0: data:/x: the panel mounts read-write only",
    lines("volumes: [/var/run/docker.sock:/s:ro]"): "the panel mounts read-write only",
    lines("volumes: [d:/x]"): "volumes.0: no source:d:/x: 'd:/x' is no absolute path",  # a drive of Windows
    lines("volumes: [./n8n:/x]"): "nothing but text files of the repository gets to the droplet",
    lines("volumes: [./nothing.yaml:/x]"): "No such file or directory",
    lines("volumes: [/cache]"): "a volume has a name",
    lines("volumes: [{type: tmpfs, target: /t}]"): "no mount of type tmpfs",
    lines("volumes: [{type: volume, source: own, target: /t, volume: {nocopy: true}}]"): "mounts a volume as it is",
    lines("volumes: [nfs:/n]"): "volumes.nfs: the panel keeps volumes in folders of its own",
    lines("volumes: [twice:/t]"): "",
    lines("volumes: [twice:/t]"): "",
    lines("command: sh -c 'a; b' && c"): "drops everything from '&&' on",
    lines('command: echo "hello world" $$X; sleep 1'): "drops everything from ';' on",
    lines("entrypoint: a | b"): "entrypoint: a text is no shell",
    lines("command: a $SHELLY b"): "drops everything from ';' on",
    lines("command: 'a #1; b'"): "drops everything from ';' on",
    lines("environment: {'#A': b}"): "the panel reads no variable of that name",
    lines("volumes: [~/a:/a]"): "~/a:/a: it is not of this repository",
    lines("volumes: [{type: bind, source: ../../b, target: /b}]"): "../../b: it is not of this repository",
    lines("volumes: [named:/n]"): "volumes.named: the panel keeps volumes in folders of its own",
    lines("x-easypanel: [a]"): "x-easypanel: it is no mapping",
    lines("x-easypanel: {domains: {host: a}}"): "it is no list of mappings",
    lines('command: ["a", "${S}"]'): "a secret stands in it and would be shown",
    lines("command: []"): "the panel cannot run an image without what its CMD says",
    lines("environment: {A: 010}"): "environment.A: 010 without quotes is read as 8; quote it",
    lines("environment: {A: 1.10}"): "1.10 without quotes is read as 1.1",
    lines("environment: {A: 2024-01-02}"): "2024-01-02 without quotes is read as",
    lines('environment: {A: "a\\nb"}'): "the panel keeps one line a value; encode it",
    lines("mem_limit: 512k"): "524288 bytes are no whole number of MB; Docker's least is 6 MB",
    lines("deploy: {resources: {limits: {memory: 5m}}}"): "Docker's least is 6 MB",
    lines("deploy: {resources: {limits: {pids: 10}}}"): "limits.pids: the panel has nothing for it",
    lines("deploy: {mode: global}"): "deploy.mode: the panel has replicated only",
    lines("deploy: {placement: {constraints: [a==b]}}"): "deploy.placement.constraints.0: 'a==b' is no constraint",
    lines("deploy: {placement: {max_replicas_per_node: 1}}"): "placement.max_replicas_per_node: Swarm spreads",
    lines("user: '1000'"): "user: the image's USER counts",
    lines("read_only: true"): "read_only: the panel cannot make",
    lines("privileged: true"): "privileged: the panel has nothing for it",
    lines("tmpfs: /t"): "tmpfs: the panel has nothing for it",
    lines("network_mode: host"): "network_mode: an app is always on the panel's own networks",
    lines("networks: {outside: }"): "networks.outside: an app joins the panel's own networks only",
    lines("networks: {default: {aliases: [a]}}"): "networks.default: the panel cannot set aliases",
    lines("profiles: [x]"): "profiles: every app of the file runs",
    lines("stop_grace_period: 1m"): "stop_grace_period: the panel cannot set it: Docker gives 10 s",
    lines("restart: 'no'"): "Swarm would start a job again for ever",
    lines("labels: [traefik.enable=true]"): "declare x-easypanel.domains",
    lines("secrets: [elsewhere]"): "its text must be known: file, environment or content",
    lines("ports: ['127.0.0.1:5432:5432']"): "127.0.0.1:5432: the panel publishes on every address",
    lines("ports: ['80:80']"): "80 is taken by the panel's proxy; x-easypanel.domains gives an app a name",
    lines("ports: ['3001']"): "3001 needs one published port, not ''",
    lines("ports: ['8000-8010:80']"): "80 needs one published port, not '8000-8010'",
    lines("build: ./elsewhere"): "make build takes ./c",
    lines("build: {context: ./api, args: {A: b}}"): "build.args: make build takes the folder's Dockerfile as it is",
    lines("x-easypanel: {domains: [{host: a, port: 80, https: sometimes}]}"): "https: 'sometimes' cannot be",
    lines("x-easypanel: {domains: [{host: 'https://a', port: 80}]}"): "host: 'https://a' cannot be",
    lines("x-easypanel: {domains: [{host: a}]}"): "port: '?' cannot be",
    lines("x-easypanel: {domains: [{host: a, port: 80, tls: true}]}"): "domains.0.tls: the panel has nothing for it",
    lines("x-easypanel: {domains: [{host: two, port: 1}]}"): "",
    lines("x-easypanel: {domains: [{host: two, port: 2}]}"): "domain two/ is that of c",
    lines("x-easypannel: {domains: []}", "x-image: {tags: x}"): "x-image.tags: the panel has nothing for it",
    lines("x-mine: {a: b}"): "x-mine: the panel has nothing for it",
}  # fmt: skip


def test_what_the_panel_cannot_say_is_refused_by_name_all_of_it_at_once() -> None:
    told = refused(
        together(REFUSED, DECLARED.replace("nfs:", "own: , twice: , named: {name: a}, nfs:"))
    )
    problems = told.split(" | ")
    for case, reason in REFUSED.items():
        assert reason in told, case
    assert len(problems) >= sum(map(bool, REFUSED.values())), problems


BROKEN = {
    "services: {a: {image: x, image: y}}": "already defined",
    "services: [": "not YAML",
    "include: [loopback.yaml]\nservices: {a: {image: x}}": "include: write its services into this file",
    "services: {a: {image: x, deploi: {}}, b: {image: y, build: {contextt: .}}, c: {networks: [n], user: x}}": (
        "'deploi' was unexpected",
        "services.b.build.contextt",
        "services.c.user: the image's USER",
    ),
    "services: {a: {image: x, deploy: {update_config: {order: sometimes, colour: 1}}}}": (
        "sometimes",
        "colour",
    ),
    "services: {a: {image: x, volumes: [{type: volume, source: d, target: /d, colour: 1}]}}": "colour",
    "services: {a: {image: x, mem_limit: lots}}": "lots",
    "services: {a: {image: x, depends_on: [b]}}": "depends on undefined service",
    "services: {a: {image: x, volumes: [undeclared:/d]}}": "undeclared",
    "services: {Not_Allowed: {image: x}, b: {}}": (
        "a name is made of",
        "neither an image nor a build",
    ),
    "services: {a: {image: '${A}', user: x, environment: {B: '${B:?the password}', C: '${D:?}', E: }}}": (
        "no value for A, B (the password), D; see docs/setup.md",
        "services.a.user",
    ),
}


def test_what_docker_compose_refuses_is_one_line_that_names_the_place() -> None:
    for text, reasons in BROKEN.items():
        told = refused(text)
        for reason in [reasons] if isinstance(reasons, str) else reasons:
            assert reason in told, (text, told)


def test_a_value_that_holds_a_secret_travels_apart_and_compose_never_sees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    run = compose._compose

    def watched(*given: Any) -> tuple[int, str, str]:
        seen.append(given)
        return run(*given)

    monkeypatch.setattr(compose, "_compose", watched)
    declared = compose.panel_apps(
        together(
            {
                lines(
                    'environment: {A: "postgres://u:${S:?}@db", B: "$S", C: "${NONE}", D: "${NONE:-d}"}'
                ): {}
            }
        ),
        PLAIN,
        SECRETS,
    )
    secret = SECRETS["S"]
    assert declared["secret_env"] == {
        "c0": {"A": f"postgres://u:{secret}@db", "B": secret, "C": "", "D": "d"}
    }
    assert secret not in str(declared["apps"])
    assert secret not in str(seen)
    # What the tests of releases and plans take for an app is one.
    assert declared["apps"][0].keys() == simulated_droplet.declared().keys()


def test_an_app_that_is_left_out_asks_for_nothing_and_others_may_refer_to_it() -> None:
    text = together(
        {lines("depends_on: [c1]"): {}, lines("environment: {A: 12:30, B: '${U}'}"): {}}
    )
    apps = compose.panel_apps(text, PLAIN, {}, ["c1"])["apps"]
    assert [app["name"] for app in apps] == ["c0"]


def test_the_domains_of_apps_need_their_own_variables_only() -> None:
    text = (ROOT / "services/compose.yaml").read_text()
    given = {"API_DOMAIN": "api.example.com", "INGEST_KEY": "secret"}
    assert compose.panel_domains(text, given) == {
        "api": "api.example.com",
        "web": "",
        "n8n": "",
    }


def test_n8n_never_has_two_containers_on_its_volume() -> None:
    text = (ROOT / "services/compose.yaml").read_text()
    values = {name: name for name in re.findall(r"\$\{(\w+)", text)}
    declared = compose.panel_apps(text, values)
    assert declared["warnings"] == []
    app = next(app for app in declared["apps"] if app["name"] == "n8n")
    assert app["replicas"] == 1
    assert not app["zero_downtime"]
    assert app["mounts"] == [{"type": "volume", "name": "n8n", "mountPath": "/home/node/.n8n"}]


def popular() -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of the shape that popular programs publish, each with what must be told of it."""
    for document in (ROOT / "tests/unit/compose_files.yaml").read_text().split("\n---\n"):
        yield document, yaml.safe_load(document)["x-told"]


def test_files_of_the_shape_that_others_publish_are_taken_or_refused_with_every_reason() -> None:
    seen = 0
    for text, told in popular():
        seen += 1
        try:
            lines_told = compose.panel_apps(text, {"DB_PASSWORD": "p"}, {"KEY": "k"})["warnings"]
        except AnsibleFilterError as error:
            message = str(error.message).removeprefix("services/compose.yaml: ")
            lines_told = re.sub(r"^\d+ problems: ", "", message).split(" | ")
            assert "refused" in told, message
        else:
            assert "accepted" in told, text
        expected = told.get("refused", told.get("accepted")) or []
        assert sorted(line.partition(":")[0] for line in lines_told) == sorted(expected)
    assert seen >= 10
