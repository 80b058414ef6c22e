"""Root's build of a disk image, which mounts the host's own file systems below its folder."""

from pathlib import Path

import pytest

from local.droplet.image import _build
from local.settings import LocalError


def test_a_build_that_dies_leaves_nothing_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next build deletes what this one left: a mount of the host's /dev/shm would be emptied with it."""
    root = tmp_path / "root"
    (tmp_path / "mmdebstrap").write_text(
        f"#!/bin/sh\nmkdir {root} && mount -t tmpfs none {root} && touch {root}/theirs && kill -9 $$\n"
    )
    (tmp_path / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(LocalError, match="mmdebstrap failed with exit code -9"):
        _build("trixie", ["sudo"], None, tmp_path)
    assert root.exists(), "the stand-in came as far as its mount"
    assert not root.is_mount()
    assert list(root.iterdir()) == []
