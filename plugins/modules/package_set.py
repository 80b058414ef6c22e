#!/usr/bin/python
"""Ansible module `package_set`: Debian packages that must be installed, at which version, held or not.

Why not `apt`: it cannot say in check mode what it would install on a machine whose package lists
are empty, it opens the whole package cache even when there is nothing to do, and it stops at a dpkg
which an interrupted run left half-way. One `dpkg-query` answers all that when nothing changes;
apt-get itself does the work when something does.
"""

from __future__ import annotations

import base64
import fcntl
import fnmatch
import hashlib
import os
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: package_set
short_description: Install Debian packages, recovering an interrupted dpkg first
options:
  names:
    description: Packages; C(name) or C(name=version), where the version may have C(*) at its end.
    type: list
    elements: str
    required: true
  hold: {description: Whether to hold these packages at their version., type: bool, default: false}
  conflicts:
    description: Packages which must not be installed; nothing is changed when one is.
    type: list
    elements: str
    default: []
  conflict_advice: {description: What to do about such a package., type: str, default: ''}
  source:
    description: An apt repository from which they come.
    type: dict
    suboptions:
      name: {description: Name of its file below /etc/apt/sources.list.d., type: str, required: true}
      uri: {description: Where it is., type: str, required: true}
      suite: {description: Its suite., type: str, required: true}
      component: {description: Its component., type: str, required: true}
      key_url: {description: Where its signing key is., type: str, required: true}
      key_fingerprint: {description: Fingerprint of that key (40 hex digits)., type: str, required: true}
"""

APT_GET = [
    "apt-get",
    "--quiet",
    "--yes",
    "--option=DPkg::Lock::Timeout=600",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
    "--option=APT::Update::Error-Mode=any",
]
QUIET = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_MODE": "l",
    "NEEDRESTART_SUSPEND": "1",
    "LC_ALL": "C",
}
FRESH_SECONDS = 3600.0
LOCK_SECONDS = 600.0


def parse_dpkg(listing: str) -> dict[str, tuple[str, str]]:
    """Package name to (three-letter status of `dpkg -l`, version), from lines `name<TAB>status<TAB>version`."""
    rows = (line.split("\t") for line in listing.splitlines())
    return {name: (status.ljust(3), version) for name, status, version in rows}


def half_way(installed: dict[str, tuple[str, str]]) -> dict[str, bool]:
    """Packages which dpkg left half-way, and whether each must be unpacked again.

    Source: dpkg(1), "package states" and "package flags".
    """
    return {
        name: status[2] == "R" or status[1] == "H"
        for name, (status, _) in installed.items()
        if status[2] == "R" or status[1] in "HUFWt"
    }


def wanting(wanted: list[str], installed: dict[str, tuple[str, str]]) -> list[str]:
    """Those of `wanted` (`name` or `name=version pattern`) that are not installed as asked."""
    missing = []
    for want in wanted:
        name, _, pattern = want.partition("=")
        status, version = installed.get(name, ("   ", ""))
        if status[1] != "i" or (pattern and not fnmatch.fnmatchcase(version, pattern)):
            missing.append(want)
    return missing


def fingerprints(armored: str) -> list[str]:
    """Fingerprints of the primary keys in an ASCII-armored OpenPGP key file.

    Source: RFC 4880 §4.2, §6.2 and §12.2. Raises ValueError.
    """
    lines = [line.strip() for line in armored.strip().splitlines()]
    try:
        body = lines[lines.index("", lines.index("-----BEGIN PGP PUBLIC KEY BLOCK-----")) + 1 :]
        data = base64.b64decode(
            "".join(
                line
                for line in body[: body.index("-----END PGP PUBLIC KEY BLOCK-----")]
                if not line.startswith("=")
            )
        )
    except ValueError as error:
        raise ValueError("it is not an armored OpenPGP key") from error
    found, at = [], 0
    while at < len(data):
        head = data[at]
        if head & 0x40:  # new packet format
            tag, first = head & 0x3F, data[at + 1]
            if first < 192:
                start, length = at + 2, first
            elif first < 224:
                start, length = at + 3, ((first - 192) << 8) + data[at + 2] + 192
            else:
                start, length = at + 6, int.from_bytes(data[at + 2 : at + 6], "big")
        else:
            tag, width = (head >> 2) & 0xF, {0: 1, 1: 2, 2: 4}.get(head & 3, 0)
            start, length = at + 1 + width, int.from_bytes(data[at + 1 : at + 1 + width], "big")
        if length == 0:
            raise ValueError("it holds an OpenPGP packet of unknown length")
        if tag == 6:
            packet = data[start : start + length]
            whole = b"\x99" + len(packet).to_bytes(2, "big") + packet
            found.append(hashlib.sha1(whole, usedforsecurity=False).hexdigest().upper())
        at = start + length
    return found


class PackageSet:
    """The packages of one call on this machine."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def run(self, argv: list[str]) -> str:
        """Run, or fail with the end of its output."""
        status, out, err = self.module.run_command(argv, environ_update=QUIET)
        if status:
            tail = "\n".join((out + err).strip().splitlines()[-8:])
            self.module.fail_json(msg=f"`{' '.join(argv)}` failed:\n{tail}", rc=status)
        return str(out)

    def installed(self) -> dict[str, tuple[str, str]]:
        """All packages dpkg knows."""
        shown = "--showformat=${Package}\\t${db:Status-Abbrev}\\t${Version}\\n"
        return parse_dpkg(self.run(["dpkg-query", "--show", shown]))

    def wait_for_dpkg(self) -> None:
        """Return when no other program holds dpkg's lock: what is half-way may be under way."""
        deadline = time.monotonic() + LOCK_SECONDS
        with open("/var/lib/dpkg/lock-frontend", "w", encoding="ascii") as lock:
            while True:
                try:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except OSError:
                    if time.monotonic() > deadline:
                        self.module.fail_json(
                            msg=f"Another program has held dpkg's lock for {LOCK_SECONDS:.0f} s. "
                            "See which one on the host: sudo fuser -v /var/lib/dpkg/lock-frontend"
                        )
                    time.sleep(2.0)

    def recover(self) -> None:
        """Finish what an interrupted dpkg left half-way."""
        self.run(["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"])
        again = [name for name, unpack in half_way(self.installed()).items() if unpack]
        if again:
            self.run([*APT_GET, "update"])
            self.run([*APT_GET, "--allow-change-held-packages", "--reinstall", "install", *again])
        self.run([*APT_GET, "--fix-broken", "install"])

    def source_files(self) -> dict[Path, str | None]:
        """Files of the apt repository and their contents; None means: the key, not yet fetched."""
        source = self.module.params["source"]
        if not source:
            return {}
        key = Path(f"/etc/apt/keyrings/{source['name']}.asc")
        text = "\n".join(
            [
                "# Written by Ansible (module package_set).",
                "Types: deb",
                f"URIs: {source['uri']}",
                f"Suites: {source['suite']}",
                f"Components: {source['component']}",
                f"Signed-By: {key}",
                "",
            ]
        )
        return {key: None, Path(f"/etc/apt/sources.list.d/{source['name']}.sources"): text}

    def stale(self, path: Path, text: str | None) -> bool:
        """Whether the file of the repository is not what it must be."""
        if not path.exists():
            return True
        if text is not None:
            return path.read_text() != text
        try:
            return fingerprints(path.read_text()) != [
                self.module.params["source"]["key_fingerprint"]
            ]
        except ValueError:
            return True

    def write(self, path: Path, text: str | None) -> None:
        """Write it; the key only when its fingerprint is the declared one."""
        if text is None:
            source = self.module.params["source"]
            text = open_url(source["key_url"], timeout=30).read().decode("ascii")
            try:
                found = fingerprints(text)
            except ValueError as error:
                self.module.fail_json(msg=f"{source['key_url']}: {error}")
            if found != [source["key_fingerprint"]]:
                self.module.fail_json(
                    msg=f"{source['key_url']} has the key {', '.join(found) or 'none'}, not "
                    f"{source['key_fingerprint']}. Nothing was installed. Compare with the vendor's "
                    "documentation before you change the fingerprint."
                )
        path.parent.mkdir(mode=0o755, exist_ok=True)
        beside = path.with_name(f".{path.name}.cimt")
        beside.write_text(text)
        beside.chmod(0o644)
        os.replace(beside, path)

    def converge(self) -> None:
        """Make it so."""
        module, wanted = self.module, self.module.params["names"]
        installed = self.installed()
        if half_way(installed):
            self.wait_for_dpkg()
            installed = self.installed()
        in_the_way = [
            name
            for name in module.params["conflicts"]
            if installed.get(name, ("   ", ""))[0][1] not in " nc"
        ]
        if in_the_way:
            module.fail_json(
                msg=f"Nothing was changed: {', '.join(in_the_way)} is installed. "
                f"{module.params['conflict_advice']}".strip()
            )
        broken = half_way(installed)
        stale = {path: text for path, text in self.source_files().items() if self.stale(path, text)}
        missing = wanting(wanted, installed)
        names = [want.partition("=")[0] for want in wanted]
        unheld = (
            [name for name in names if installed.get(name, ("   ", ""))[0][0] != "h"]
            if module.params["hold"]
            else []
        )
        before = {
            name: installed[name][1]
            for name in names
            if name in installed and installed[name][0][1] == "i"
        }
        after = {
            **before,
            **{want.partition("=")[0]: want.partition("=")[2] or "newest" for want in missing},
        }

        def show(versions: dict[str, str]) -> str:
            return "".join(f"{name} {version}\n" for name, version in sorted(versions.items()))

        diff = {
            "before_header": "packages",
            "after_header": "packages",
            "before": "".join(f"{name} is half-way\n" for name in broken) + show(before),
            "after": "".join(f"{path}\n" for path in stale)
            + show(after)
            + "".join(f"hold {name}\n" for name in unheld),
        }
        changed = bool(broken or stale or missing or unheld)
        if changed and not module.check_mode:
            if broken:
                self.recover()
            for path, text in stale.items():
                self.write(path, text)
            missing = wanting(wanted, self.installed())
            if missing:
                lists = Path("/var/lib/apt/lists")
                if (
                    stale
                    or time.time() - lists.stat().st_mtime > FRESH_SECONDS
                    or not any(lists.glob("*Release"))
                ):
                    self.run([*APT_GET, "update"])
                self.run(
                    [
                        *APT_GET,
                        "--no-install-recommends",
                        "--allow-change-held-packages",
                        "--allow-downgrades",
                        "install",
                        *missing,
                    ]
                )
            if unheld:
                self.run(["apt-mark", "hold", *names])
        module.exit_json(changed=changed, diff=diff, installed=missing)


def main() -> None:
    """Entry point."""
    text = {"type": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "hold": {"type": "bool", "default": False},
            "conflicts": {"type": "list", "elements": "str", "default": []},
            "conflict_advice": {"type": "str", "default": ""},
            "source": {
                "type": "dict",
                "options": dict.fromkeys(
                    ("name", "uri", "suite", "component", "key_url", "key_fingerprint"), text
                ),
            },
        },
        supports_check_mode=True,
    )
    PackageSet(module).converge()


if __name__ == "__main__":
    main()
