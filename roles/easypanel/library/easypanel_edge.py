"""Ansible module: the panel's proxy behind Cloudflare's, or on its own."""

from __future__ import annotations

import json
import pathlib
import re
import ssl
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.easypanel import (
    PANEL_ARGUMENTS,
    Panel,
    failures,
    open_panel,
    write_file,
)

DOCUMENTATION = r"""
module: easypanel_edge
short_description: What the panel's proxy shows Cloudflare, and whom it believes about clients
description:
  - With C(hosts), the proxy shows a certificate of Cloudflare's Origin CA, and believes C(trusted) about clients.
    The key is made here and never leaves the host. Where a certificate is needed, C(csr) asks for it; a second call
    brings it as C(certificate).
  - Without, what the first has done is taken back, and the panel asks Let's Encrypt again. A host that never had it is
    not looked at further.
  - What somebody else has in the proxy's own configuration and environment stays.
options:
  url: {type: str, required: true, description: Where the panel answers on this host.}
  token_file: {type: path, required: true, description: Where its API token is.}
  hosts: {type: list, elements: str, default: [], description: Names behind Cloudflare's proxy.}
  trusted: {type: list, elements: str, default: [], description: Networks whose word about clients is taken.}
  certificate: {type: str, default: "", description: The certificate (PEM) for the last C(csr).}
  renew_days: {type: int, default: 90, description: A certificate with fewer days left is replaced.}
  folder: {type: path, default: /etc/easypanel/traefik, description: What the proxy has as C(/data).}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: Behind Cloudflare
  easypanel_edge:
    url: http://127.0.0.1:3000
    token_file: /etc/cimt/easypanel.token
    hosts: [api.example.com]
    trusted: [173.245.48.0/20]
"""

RETURN = r"""
steps: {type: list, elements: str, returned: always, description: What was done or would be done.}
csr: {type: str, returned: always, description: Request for the certificate that is needed; empty when none is.}
days: {type: int, returned: always, description: For how long the certificate that is shown is good.}
"""

BLOCK = re.compile(r"^# cimt: certificate.*?^# cimt: end\n?", re.MULTILINE | re.DOTALL)
CONFIG = """\
# cimt: certificate {mark} (make provision)
tls:
  certificates:
    - certFile: /data/cimt-origin.crt
      keyFile: /data/cimt-origin.key
# cimt: end
"""
VARIABLE = "TRAEFIK_ENTRYPOINTS_{}_FORWARDEDHEADERS_TRUSTEDIPS"


class Edge:
    """The proxy's own files, configuration and environment."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        self._dry = module.check_mode
        folder = pathlib.Path(module.params["folder"])
        self._key, self._new, self._certificate = (
            folder / f"cimt-origin.{end}" for end in ("key", "new.key", "crt")
        )
        self._routes = folder / "config/main.yaml"
        self.steps: list[str] = []
        self.csr = ""
        self.days = 0

    def converge(self) -> None:
        """Everything that this module is for. Raises PanelError, OSError."""
        params = self._module.params
        files = [one for one in (self._key, self._new, self._certificate) if one.exists()]
        if not params["hosts"]:
            if files:
                self._configure(open_panel(params["url"], params["token_file"]), "", [])
                self.steps.append("no key and certificate of Cloudflare's Origin CA")
                for one in () if self._dry else files:
                    one.unlink()
            return
        panel = open_panel(params["url"], params["token_file"])
        if params["certificate"]:
            self._take(params["certificate"])
        self.days = self._left(self._certificate, self._key)
        if self.days < params["renew_days"]:
            self.steps.append(f"a certificate of Cloudflare's Origin CA ({self.days} days left)")
            self.csr = "" if self._dry else self._request()
        mark = (
            self._openssl("x509", "-in", self._certificate, "-noout", "-serial")
            if self.days
            else ""
        )
        self._configure(panel, mark.strip(), params["trusted"])

    def _openssl(self, *arguments: Any, sent: str | None = None, must: bool = True) -> str:
        command = ["openssl", *map(str, arguments)]
        code, out, err = self._module.run_command(command, data=sent, binary_data=True)
        if code != 0 and must:
            self._module.fail_json(msg=f"openssl {arguments[0]}: {err.strip()[-300:]}")
        return str(out) if code == 0 else ""

    def _left(self, certificate: pathlib.Path, key: pathlib.Path) -> int:
        """Days for which a certificate of this key is good for all names; 0 for any other."""
        if not certificate.exists() or not key.exists():
            return 0
        shown = (
            "x509",
            "-in",
            certificate,
            "-noout",
            "-pubkey",
            "-enddate",
            "-ext",
            "subjectAltName",
        )
        text = self._openssl(*shown, must=False)
        public = self._openssl("pkey", "-in", key, "-pubout", must=False).strip()
        names = set(re.findall(r"DNS:([^\s,]+)", text))
        end = re.search(r"^notAfter=(.*)$", text, re.MULTILINE)
        if not public or public not in text or set(self._module.params["hosts"]) - names or not end:
            return 0
        return max(0, int(ssl.cert_time_to_seconds(end[1]) - time.time()) // 86400)

    def _request(self) -> str:
        """The request for a certificate, by a key that waits for it; one that waits already is taken."""
        if not self._new.exists():
            curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
            write_file(str(self._new), self._openssl("genpkey", *curve))
        hosts = self._module.params["hosts"]
        names = ",".join(f"DNS:{host}" for host in hosts)
        about = ("-subj", f"/CN={hosts[0]}", "-addext", f"subjectAltName={names}")
        return self._openssl("req", "-new", "-key", self._new, *about)

    def _take(self, text: str) -> None:
        """A certificate for the key that waits for it; both in place of what was."""
        waiting = self._certificate.with_suffix(".new.crt")
        write_file(
            str(waiting), text.strip() + "\n", 0o644
        )  # the host's own look at its apps trusts it
        if not self._left(waiting, self._new):
            waiting.unlink()
            self._module.fail_json(
                msg="the certificate is not one for this droplet's key and names. Next: make provision again"
            )
        self.steps.append("a new certificate of Cloudflare's Origin CA")
        self._new.replace(self._key)
        waiting.replace(self._certificate)

    def _entry_points(self) -> list[str]:
        """Names of the proxy's doors, by the routes that the panel writes; a variable of another name opens one."""
        found = {"http", "https"}
        try:
            routers = json.loads(self._routes.read_text())["http"]["routers"].values()
            found = {name for one in routers for name in one["entryPoints"]} or found
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # no route yet, or written otherwise
        return sorted(found)

    def _configure(self, panel: Panel, mark: str, trusted: list[str]) -> None:
        """The proxy's configuration and environment as they shall be, and nothing else in them touched."""
        before = (panel.read("getCustomConfig") or "").replace("\r\n", "\n")
        rest = BLOCK.sub("", before)
        if mark and rest.strip() == "{}":
            rest = ""
        if mark and re.search(r"^(tls\s*:|\{)", rest, re.MULTILINE):
            self._module.fail_json(
                msg="the proxy's custom configuration has a section tls of somebody else. Next: in the panel, "
                "Settings, Traefik: take it out; or leave DNS_PROXIED off"
            )
        after = rest if not mark else f"{rest.strip()}\n{CONFIG.format(mark=mark)}".lstrip()
        if after != before:
            self.steps.append(
                "the proxy shows it" if mark else "the proxy shows its own certificates"
            )
            if not self._dry:
                panel.write("setCustomConfig", config=after)
        lines = (panel.read("getEnv") or "").replace("\r\n", "\n").split("\n")
        ours = re.compile(VARIABLE.format("[A-Z0-9]+") + "=")
        kept = [line for line in lines if line and not ours.match(line)]
        wanted = [
            f"{VARIABLE.format(name.upper())}={','.join(trusted)}"
            for name in (self._entry_points() if trusted else ())
        ]
        if kept + wanted != [line for line in lines if line]:
            self.steps.append(
                f"the proxy believes {len(trusted)} networks about clients (it restarts)"
            )
            if not self._dry:
                panel.write("setEnv", env="\n".join(kept + wanted))
                panel.write("restart")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **PANEL_ARGUMENTS,
            "hosts": {"type": "list", "elements": "str", "default": []},
            "trusted": {"type": "list", "elements": "str", "default": []},
            "certificate": {"type": "str", "default": ""},
            "renew_days": {"type": "int", "default": 90},
            "folder": {"type": "path", "default": "/etc/easypanel/traefik"},
        },
        supports_check_mode=True,
    )
    edge = Edge(module)
    with failures(module, "make provision again"):
        edge.converge()
    module.exit_json(changed=bool(edge.steps), steps=edge.steps, csr=edge.csr, days=edge.days)


if __name__ == "__main__":
    main()
