"""Ansible module: the panel is installed at a pinned version, has its admin and an API token."""

from __future__ import annotations

import json
import pathlib
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.easypanel import (
    NEXT_VERSION,
    NOT_READY,
    PANEL_ARGUMENTS,
    PANEL_PORT,
    PROXY_PORTS,
    Panel,
    PanelError,
    failures,
    host_lock,
    parsed_version,
    write_file,
)
from ansible.module_utils.private_network import private_address

DOCUMENTATION = r"""
module: easypanel_install
short_description: Install EasyPanel once, create its first admin, keep a working API token
description:
  - Runs the panel's own C(setup) command when the host has no panel of this version, or a set-up was interrupted.
    An existing Swarm is never left.
  - On a host with a private network the Swarm is made before, known by its address there. The panel's own would be
    known by one that no second node reaches, and that cannot be changed.
  - A newer panel is told and left; C(downgrade) names the version to go back to.
  - An upgrade is checked before (it answers) and after (version, and no app is missing).
  - Creates the first admin from localhost, before anybody else can reach the panel.
  - Keeps an API token in a file that only root can read.
  - An admin who has another password than the declared one gets that, while the kept token is good; token and deploy
    hooks are made anew with it, under the lock of the releases, which use them.
  - Gives Swarm's own node the time that a starved host needs. One that misses its heartbeats counts as lost, and Swarm
    then starts everything a second time on the very host that has no time for it.
options:
  image: {type: str, required: true, description: Image of the panel, with its tag.}
  version: {type: str, required: true, description: Version to pin (RELEASE_TAG).}
  url: {type: str, required: true, description: Where the panel answers on this host.}
  admin_email: {type: str, required: true, description: E-mail address of the first admin.}
  admin_password: {type: str, required: true, description: Password of the first admin, 8 characters or more.}
  token_file: {type: path, required: true, description: Where the API token is kept, mode 0600.}
  project: {type: str, required: true, description: Project whose apps get new deploy hooks with a new password.}
  state_directory: {type: path, required: true, description: Where the lock of the releases is.}
  downgrade: {type: str, default: "", description: The pinned version again, to take a newer panel back to it.}
  advertise: {type: str, default: "", description: The host's private address; empty finds it where there is one.}
  address_pool: {type: str, default: 10.200.0.0/16, description: Where the Swarm's networks take addresses from.}
  heartbeat: {type: int, default: 60, description: "Seconds between a node's heartbeats; without three it is lost."}
  timeout: {type: int, default: 600, description: Seconds to wait for the panel to answer.}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: Panel installed
  easypanel_install:
    image: "{{ easypanel_image }}"
    version: "{{ easypanel_version }}"
    url: http://127.0.0.1:3000
    admin_email: ops@example.com
    admin_password: "{{ password }}"
    token_file: /etc/cimt/easypanel.token
    project: cimt
    state_directory: /var/lib/cimt
"""

RETURN = r"""
steps: {type: list, elements: str, returned: always, description: What was done or would be done.}
"""

LOCK_WAIT = 300  # seconds for a release that is under way


def docker(module: AnsibleModule, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of Docker; 127 where there is none."""
    program = module.get_bin_path("docker")
    return module.run_command([program, *arguments]) if program else (127, "", "there is no docker")


def installed(module: AnsibleModule) -> tuple[str, str] | None:
    """Image (without its digest) and version of the Swarm service `easypanel`; None when there is none.

    The version is what it was set up with: RELEASE_TAG, else the image's tag; empty where that says no version.
    """
    shown = "{{json .Spec.TaskTemplate.ContainerSpec}}"
    code, out, _ = docker(module, "service", "inspect", "easypanel", "--format", shown)
    if code != 0:
        return None
    container = json.loads(out)
    image = str(container["Image"]).split("@")[0]
    told = dict(line.partition("=")[::2] for line in container.get("Env") or [])
    tags = (told.get("RELEASE_TAG", ""), image.rpartition(":")[2])
    return image, next((tag for tag in tags if parsed_version(tag)), "")


def heartbeat(module: AnsibleModule) -> int | None:
    """Seconds between the heartbeats of this Swarm's nodes; None where there is no Swarm."""
    code, out, _ = docker(module, "info", "--format", "{{json .Swarm.Cluster}}")
    cluster = json.loads(out or "null") if code == 0 else None
    return int(cluster["Spec"]["Dispatcher"]["HeartbeatPeriod"]) // 10**9 if cluster else None


def must(module: AnsibleModule, purpose: str, *arguments: str) -> None:
    """Run Docker, or fail with the end of what it said."""
    code, out, err = docker(module, *arguments)
    if code != 0:
        module.fail_json(msg=f"cannot {purpose}: {(err or out).strip()[-1500:]}")


def busy_ports(module: AnsibleModule) -> list[int]:
    """Ports that the panel needs and somebody else already has; its own proxy may be there already."""
    own_proxy = docker(module, "service", "inspect", "traefik")[0] == 0
    busy = []
    for port in (PANEL_PORT, *(() if own_proxy else PROXY_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - as the proxy will
            except OSError:
                busy.append(port)
    return busy


def swarm(module: AnsibleModule) -> dict[str, Any]:
    """What Docker says of the Swarm that this host is in."""
    code, out, _ = docker(module, "info", "--format", "{{json .Swarm}}")
    return dict(json.loads(out or "null") or {}) if code == 0 else {}


def make_swarm(module: AnsibleModule, steps: list[str]) -> str:
    """Make the Swarm where there is a private network and none yet; the address that it then is known by, or empty."""
    address = module.params["advertise"] or private_address(module.run_command)
    if not address or swarm(module).get("LocalNodeState") != "inactive":
        return ""
    steps.append(f"make a Swarm, known by {address}")
    pool = ("--default-addr-pool", module.params["address_pool"])
    masked = (*pool, "--default-addr-pool-mask-length", "24")
    must(module, "make a Swarm", "swarm", "init", "--advertise-addr", address, *masked)
    return str(address)


def run_setup(module: AnsibleModule, first: bool, ours: bool) -> None:
    """Pull the image and run the panel's own set-up, as its installer does.

    ``ours``: there is a Swarm that was made a moment ago and holds nothing. A set-up that refuses it makes its own.
    """
    image, version = module.params["image"], module.params["version"]
    if first and (busy := busy_ports(module)):
        ports = ", ".join(map(str, busy))
        module.fail_json(
            msg=f"port {ports} is in use on the droplet, the panel needs it. "
            "Next: ss -ltnp, and stop what listens there"
        )
    must(module, f"pull {image}", "pull", "--quiet", image)
    setup = [
        *("run", "--rm", "-i", "-e", f"RELEASE_TAG={version}"),
        *("-v", "/etc/easypanel:/etc/easypanel"),
        *("-v", "/var/run/docker.sock:/var/run/docker.sock:ro"),
        *(image, "setup"),
    ]
    if ours:
        code, out, err = docker(module, *setup)
        if code == 0:
            return
        module.warn(
            f"the panel's set-up takes no Swarm that is there: {(err or out).strip()[-300:]}"
        )
        must(module, "leave the Swarm that was just made", "swarm", "leave", "--force")
    must(module, "run the panel's setup", *setup)


def wait_for_panel(module: AnsibleModule, panel: Panel) -> bool:
    """Whether the panel's first admin exists, asked until it answers. An answer of another API ends it at once."""
    deadline = time.monotonic() + module.params["timeout"]
    while True:
        try:
            return bool(panel.read("getSetupStatus")["isComplete"])
        except PanelError as error:
            if error.status in (404, 405):
                panel.version()  # the same answer, with what to do
            if error.status not in NOT_READY:
                raise
            if time.monotonic() > deadline:
                module.fail_json(
                    msg=f"the panel did not answer in {module.params['timeout']} s: {error}. "
                    "Next, on the droplet: docker service ps easypanel --no-trunc"
                )
            time.sleep(2)


def kept_panel(url: str, token_file: str) -> Panel | None:
    """The panel with the kept token; None when there is none, or it is not accepted any more."""
    file = pathlib.Path(token_file)
    if not file.exists() or not (token := file.read_text().strip()):
        return None
    panel = Panel(url, token)
    try:
        panel.read("getUpdateStatus")
    except PanelError as error:
        if error.status in (401, 403):
            return None
        raise
    return panel


def token_in(answer: Any) -> str:
    """The token that an answer has, bare or under one of the names that panels use; empty without one."""
    found = (
        [answer, *(answer.get(key) for key in ("apiToken", "token"))]
        if isinstance(answer, dict)
        else [answer]
    )
    return next((text for text in found if isinstance(text, str) and text), "")


def asks_a_second_factor(error: PanelError) -> bool:
    """Whether the panel would take the password, with a code beside it."""
    return any(word in error.message.lower() for word in ("code", "factor", "2fa", "otp"))


def own_user(panel: Panel, email: str) -> dict[str, Any]:
    """The panel's user with this address. Raises PanelError when it names none."""
    for user in panel.read("listUsers"):
        if user["email"] == email:
            return dict(user)
    told = f"the panel has no user {email}. Next: set EASYPANEL_ADMIN_EMAIL to what the panel has"
    raise PanelError("listUsers", 200, told)


def made_token(panel: Panel, user: dict[str, Any]) -> str:
    """A new API token of the user, which ends the one of before. Raises PanelError when the panel shows none."""
    made = token_in(panel.write("generateApiToken", id=user["id"]))
    token = made or token_in(own_user(panel, user["email"]).get("apiToken"))
    if not token:
        told = f"the panel shows no token of {user['email']}; {NEXT_VERSION}"
        raise PanelError("generateApiToken", 200, told)
    return token


def new_token(module: AnsibleModule, panel: Panel) -> str:
    """The API token of the admin, made where there is none, by signing in."""
    email = module.params["admin_email"]
    second_factor = (
        f"{email} has a second factor, which a command cannot give. Next: make an API token in the panel (Settings, "
        f"Users) and write it to {module.params['token_file']} on the droplet, mode 0600; or switch the factor off"
    )
    try:
        session = panel.write("login", email=email, password=module.params["admin_password"])
    except PanelError as error:
        if asks_a_second_factor(error):
            module.fail_json(msg=second_factor)
        module.fail_json(
            msg=f"cannot sign in to the panel as {email}: {error.message}. Next: set "
            "EASYPANEL_ADMIN_EMAIL and EASYPANEL_ADMIN_PASSWORD to what the panel has"
        )
    panel.token = token_in(session)
    if not panel.token:
        module.fail_json(msg=second_factor)
    user = own_user(panel, email)
    return token_in(user.get("apiToken")) or made_token(panel, user)


def has_another_password(url: str, email: str, password: str) -> bool:
    """Whether the panel refuses this password; of an admin with a second factor nobody can tell."""
    try:
        Panel(url).write("login", email=email, password=password)
    except PanelError as error:
        if error.status not in (400, 401, 403):
            raise
        return not asks_a_second_factor(error)
    return False


def change_hands(module: AnsibleModule, panel: Panel) -> None:
    """The admin gets the declared password; what the one of before gave, hooks and API token, ends with it."""
    params = module.params
    user = own_user(panel, params["admin_email"])
    for app in panel.read("listProjectsAndServices")["services"]:
        if app["projectName"] == params["project"] and app["type"] == "app":
            panel.write(
                "refreshAppDeployToken", projectName=app["projectName"], serviceName=app["name"]
            )
    panel.write("updateUser", id=user["id"], admin=True, password=params["admin_password"])
    signed_in = Panel(params["url"])
    session = {"email": params["admin_email"], "password": params["admin_password"]}
    signed_in.token = token_in(signed_in.write("login", **session))
    write_file(params["token_file"], made_token(signed_in, user) + "\n")


def apps_of(panel: Panel | None) -> set[str]:
    """Names of all apps, as PROJECT/APP; none where the panel cannot be asked (another API, no token)."""
    try:
        services = panel.read("listProjectsAndServices")["services"] if panel else []
    except PanelError:
        return set()
    return {f"{service['projectName']}/{service['name']}" for service in services}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "admin_email": {"type": "str", "required": True},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "project": {"type": "str", "required": True},
            "state_directory": {"type": "path", "required": True},
            **PANEL_ARGUMENTS,
            "downgrade": {"type": "str", "default": ""},
            "advertise": {"type": "str", "default": ""},
            "address_pool": {"type": "str", "default": "10.200.0.0/16"},
            "heartbeat": {"type": "int", "default": 60},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    steps: list[str] = []
    with failures(module, "make provision again"):
        install(module, steps)
    module.exit_json(changed=bool(steps), steps=steps)


def install(module: AnsibleModule, steps: list[str]) -> None:
    """Everything that this module is for; says in ``steps`` what it does or would do."""
    params = module.params
    url, token_file, pin = params["url"], params["token_file"], params["version"]
    before = installed(module)
    upgrade = before is not None and before[0] != params["image"]
    apps: set[str] = set()
    if before is not None and upgrade:
        running = before[1]
        panel = None
        try:  # what it is by itself: it may have been updated in its own settings
            panel = kept_panel(url, token_file)
            running = panel.version() if panel else running
        except PanelError as error:
            if error.status in NOT_READY and not module.check_mode:
                module.fail_json(
                    msg=f"{error}: an upgrade begins with a panel that answers. "
                    "Next, on the droplet: docker service ps easypanel --no-trunc"
                )
        found, wanted = parsed_version(running), parsed_version(pin)
        if found and wanted and found > wanted and params["downgrade"] != pin:
            upgrade = False
            module.warn(
                f"the panel is {running}, newer than the pinned {pin}, and left. Next: set easypanel_version to "
                f"{running} once it is tested, or take it back: easypanel_downgrade={pin}"
            )
        apps = apps_of(panel)
    if before is None or upgrade:
        now = f"{before[0]} {before[1]}".strip() if before else "no panel"
        steps.append(f"install {params['image']} (now: {now})")
        if module.check_mode:
            later = [] if before else ["create the first admin", "keep an API token"]
            module.exit_json(
                changed=True,
                steps=[*steps, *later],
                diff={"before": f"{now}\n", "after": f"{params['image']}\n"},
            )
        address = make_swarm(module, steps)
        run_setup(module, first=before is None, ours=bool(address))
        if address and address != (known := swarm(module)["NodeAddr"]):
            module.warn(
                f"the panel's set-up made a Swarm of its own, known by {known} and not by {address}: one node is well, "
                'a second cannot join. Next: docs/scaling.md, "A Swarm that was made without a private network"'
            )

    if (now_beats := heartbeat(module)) is not None and now_beats != params["heartbeat"]:
        steps.append(f"Swarm's heartbeat: {now_beats} s -> {params['heartbeat']} s")
        if not module.check_mode:
            # It needs no restart.
            seconds = f"{params['heartbeat']}s"
            must(
                module,
                "set Swarm's heartbeat",
                *("swarm", "update", "--dispatcher-heartbeat"),
                seconds,
            )

    panel = Panel(url)
    if not wait_for_panel(module, panel):
        steps.append(f"create the first admin {params['admin_email']}")
        if not module.check_mode:
            panel.write(
                "setup",
                email=params["admin_email"],
                password=params["admin_password"],
                subscribe=False,
                source="automation",
                terms=True,
            )
    kept = kept_panel(url, token_file)
    if kept is None:
        steps.append(f"keep an API token in {token_file}")
        if not module.check_mode:
            write_file(token_file, new_token(module, panel) + "\n")
            kept = kept_panel(url, token_file)
    elif has_another_password(url, params["admin_email"], params["admin_password"]):
        steps.append("give the admin the declared password, and make token and deploy hooks anew")
        if not module.check_mode:
            with host_lock(params["state_directory"], "make provision", steps[-1], wait=LOCK_WAIT):
                change_hands(module, kept)
            kept = kept_panel(url, token_file)
    if kept is None:
        return  # check mode, or a token that the panel itself does not take: the next command says so
    verify(module, kept, apps if upgrade else set(), upgrade)


def verify(module: AnsibleModule, panel: Panel, apps: set[str], upgraded: bool) -> None:
    """The panel is one that is spoken; after an upgrade the pinned one, with every app that it had."""
    deadline = time.monotonic() + module.params["timeout"]
    pin = module.params["version"]
    while (version := panel.version()) != pin and upgraded:
        if time.monotonic() > deadline:
            module.fail_json(
                msg=f"the panel was set up as {pin} and is {version} after {module.params['timeout']} s. "
                "Next, on the droplet: docker service ps easypanel --no-trunc"
            )
        time.sleep(2)
    if lost := sorted(apps - apps_of(panel)):
        module.fail_json(
            msg=f"the panel {version} has no {', '.join(lost)} any more; they run on. "
            "Next: make plan, then make services"
        )


if __name__ == "__main__":
    main()
