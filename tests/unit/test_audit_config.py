"""What the audit asks of configuration, where no local droplet has it."""

from __future__ import annotations

import pytest

from tests.audit.test_config import test_no_unit_is_altered_beside_its_file as nothing_beside
from tools.declared import Declared, files_of

VOLUME = "/etc/systemd/system/docker.service.d/cimt-volume.conf"


def test_what_a_role_says_beside_the_unit_of_another_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A droplet with a volume: Docker waits for it."""
    monkeypatch.setenv("DROPLET_VOLUME", "cimt-production")
    declared = Declared("production")
    sets = declared.sets()
    ours = [item["path"] for arguments in sets.values() for item in files_of(arguments)]
    assert VOLUME in ours

    def host(*more: str) -> dict[str, dict[str, dict[str, str]]]:
        return {
            "units": {
                unit: {
                    "DropInPaths": " ".join(
                        path for path in (*ours, *more) if f"/{unit}.d/" in path
                    )
                }
                for arguments in sets.values()
                for unit in arguments.get("units", [])
            }
        }

    for name in sets:
        nothing_beside(name, declared, host())
    with pytest.raises(AssertionError, match="systemctl revert"):
        nothing_beside(
            "docker", declared, host("/etc/systemd/system/docker.service.d/override.conf")
        )
