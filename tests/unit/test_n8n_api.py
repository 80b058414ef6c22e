"""How the role finds n8n's container, its key and its owner's password. (Its container's network: tests/kernel.)"""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter.n8n import n8n_password_hash
from roles.n8n_workflows.module_utils.n8n_api import N8nError, container_pid, volume_key


def test_the_container_is_found_by_its_service() -> None:
    asked: list[list[str]] = []

    def docker(command: list[str]) -> tuple[int, str, str]:
        asked.append(command)
        return (0, "4711\n", "") if "inspect" in command else (0, "abc123\n", "")

    assert container_pid(docker, "docker", "cimt_n8n") == 4711
    assert "label=com.docker.swarm.service.name=cimt_n8n" in asked[0]
    with pytest.raises(N8nError, match="no container of cimt_n8n runs"):
        container_pid(lambda _: (0, "", ""), "docker", "cimt_n8n")


def test_the_key_of_a_volume(tmp_path: Path) -> None:
    assert volume_key(str(tmp_path)) == "", "a fresh volume takes any key"
    (tmp_path / "config").write_text('{"encryptionKey": "k"}')
    assert volume_key(str(tmp_path)) == "k"
    (tmp_path / "config").write_text('{"encryp')
    with pytest.raises(N8nError, match="config cannot be read"):
        volume_key(str(tmp_path))


def test_the_hash_of_the_owners_password_is_stable_and_refuses_what_n8n_refuses() -> None:
    hashed = n8n_password_hash("Correct-horse-1", "key")
    assert hashed.startswith("$2b$10$")
    assert len(hashed) == 60
    assert hashed == n8n_password_hash("Correct-horse-1", "key"), "a second run changes nothing"
    assert hashed != n8n_password_hash("Correct-horse-1", "another key")
    for password in ("short", "x" * 65):
        with pytest.raises(AnsibleFilterError, match="8 to 64"):
            n8n_password_hash(password, "key")
