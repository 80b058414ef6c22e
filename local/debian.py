"""Root file systems of Debian packages: what every use of mmdebstrap here has in common."""

from __future__ import annotations

from collections.abc import Sequence

SUITE = "trixie"
# Never read by a service. Copyright files stay, as licences ask.
LEAVE_OUT = (
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
)
KEEP = ("/usr/share/doc/*/copyright",)


def mmdebstrap(
    packages: Sequence[str],
    leave_out: Sequence[str],
    keep: Sequence[str] = KEEP,
    hooks: Sequence[str] = (),
) -> list[str]:
    """The command line, which wants the suite and the target yet."""
    # No mirror is named: mmdebstrap then takes the suite's security and update archives too.
    return [
        *("mmdebstrap", "--variant=minbase", "--components=main"),
        *(f"--include={','.join(packages)}", '--aptopt=Acquire::Retries "3"'),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in leave_out),
        *(f"--dpkgopt=path-include={pattern}" for pattern in keep),
        *(f"--customize-hook={hook}" for hook in hooks),
    ]
