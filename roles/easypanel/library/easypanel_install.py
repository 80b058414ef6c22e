"""Ansible module: the panel is installed at a pinned version, has its admin and an API token."""

from __future__ import annotations

import json
import pathlib
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.easypanel import PANEL_ARGUMENTS, Panel, PanelError, failures, write_file

DOCUMENTATION = r"""
module: easypanel_install
short_description: Install EasyPanel once, create its first admin, keep a working API token
description:
  - Runs the panel's own C(setup) command when the host has no panel of this version. An existing Swarm is never left.
  - Creates the first admin from localhost, before anybody else can reach the panel.
  - Keeps an API token in a file that only root can read.
  - Gives Swarm's own node the time that a starved host needs. One that misses its heartbeats counts as lost, and Swarm
    then starts everything a second time on the very host that has no time for it.
options:
  image: {type: str, required: true, description: Image of the panel, with its tag.}
  version: {type: str, required: true, description: Version to pin (RELEASE_TAG).}
  url: {type: str, required: true, description: Where the panel answers on this host.}
  admin_email: {type: str, required: true, description: E-mail address of the first admin.}
  admin_password: {type: str, required: true, description: Password of the first admin, 8 characters or more.}
  token_file: {type: path, required: true, description: Where the API token is kept, mode 0600.}
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
"""

RETURN = r"""
steps: {type: list, elements: str, returned: always, description: What was done or would be done.}
"""


def docker(module: AnsibleModule, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of Docker; 127 where there is none."""
    program = module.get_bin_path("docker")
    return module.run_command([program, *arguments]) if program else (127, "", "there is no docker")


def installed_image(module: AnsibleModule) -> str | None:
    """Image (without its digest) of the Swarm service `easypanel`; None when there is none."""
    image = "{{.Spec.TaskTemplate.ContainerSpec.Image}}"
    code, out, _ = docker(module, "service", "inspect", "easypanel", "--format", image)
    return out.strip().split("@")[0] if code == 0 else None


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


def busy_ports() -> list[int]:
    """Ports that the panel's proxy needs and somebody else already has."""
    busy = []
    for port in (80, 443, 3000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - as the proxy will
            except OSError:
                busy.append(port)
    return busy


def run_setup(module: AnsibleModule) -> None:
    """Pull the image and run the panel's own set-up, as its installer does."""
    image, version = module.params["image"], module.params["version"]
    if installed_image(module) is None and (busy := busy_ports()):
        ports = ", ".join(map(str, busy))
        module.fail_json(
            msg=f"port {ports} is in use on the droplet, the panel's proxy needs it. "
            "Next: ss -ltnp, and stop what listens there"
        )
    must(module, f"pull {image}", "pull", "--quiet", image)
    must(
        *(module, "run the panel's setup", "run", "--rm", "-i", "-e", f"RELEASE_TAG={version}"),
        *("-v", "/etc/easypanel:/etc/easypanel"),
        *("-v", "/var/run/docker.sock:/var/run/docker.sock:ro"),
        *(image, "setup"),
    )


def wait_for_panel(module: AnsibleModule, panel: Panel) -> bool:
    """Whether the panel's first admin exists, asked until it answers."""
    deadline = time.monotonic() + module.params["timeout"]
    while True:
        try:
            return bool(panel.read("getSetupStatus")["isComplete"])
        except PanelError as error:
            if time.monotonic() > deadline:
                module.fail_json(
                    msg=f"the panel did not answer in {module.params['timeout']} s: {error}. "
                    "Next, on the droplet: docker service ps easypanel --no-trunc"
                )
            time.sleep(2)


def token_works(url: str, token_file: str) -> bool:
    """Whether the kept token is still accepted."""
    file = pathlib.Path(token_file)
    if not file.exists() or not (token := file.read_text().strip()):
        return False
    try:
        Panel(url, token).read("listProjectsAndServices")
    except PanelError as error:
        if error.status in (401, 403):
            return False
        raise
    return True


def new_token(module: AnsibleModule, panel: Panel) -> str:
    """A fresh API token of the admin, by signing in."""
    email = module.params["admin_email"]
    try:
        session = panel.write("login", email=email, password=module.params["admin_password"])
    except PanelError as error:
        module.fail_json(
            msg=f"cannot sign in to the panel as {email}: {error.message}. Next: set "
            "EASYPANEL_ADMIN_EMAIL and EASYPANEL_ADMIN_PASSWORD to what the panel has"
        )
    panel.token = session["token"]

    def own_user() -> dict[str, Any]:
        users = panel.read("listUsers")
        return next(user for user in users if user["email"] == email)

    user = own_user()
    if not user.get("apiToken"):
        panel.write("generateApiToken", id=user["id"])
        user = own_user()
    return str(user["apiToken"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "admin_email": {"type": "str", "required": True},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            **PANEL_ARGUMENTS,
            "heartbeat": {"type": "int", "default": 60},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    steps: list[str] = []
    before = installed_image(module)
    if before != params["image"]:
        steps.append(f"install {params['image']} (now: {before or 'no panel'})")
        if module.check_mode:
            module.exit_json(
                changed=True,
                steps=[*steps, "create the first admin", "keep an API token"],
                diff={"before": f"{before or 'no panel'}\n", "after": f"{params['image']}\n"},
            )
        run_setup(module)

    if (now := heartbeat(module)) is not None and now != params["heartbeat"]:
        steps.append(f"Swarm's heartbeat: {now} s -> {params['heartbeat']} s")
        if not module.check_mode:
            # It needs no restart.
            seconds = f"{params['heartbeat']}s"
            must(
                module,
                "set Swarm's heartbeat",
                "swarm",
                "update",
                "--dispatcher-heartbeat",
                seconds,
            )

    panel = Panel(params["url"])
    with failures(module, "make provision again"):
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
        if not token_works(params["url"], params["token_file"]):
            steps.append(f"keep an API token in {params['token_file']}")
            if not module.check_mode:
                write_file(params["token_file"], new_token(module, panel) + "\n")
    module.exit_json(changed=bool(steps), steps=steps)


if __name__ == "__main__":
    main()
