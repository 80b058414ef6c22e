"""A set of configuration files: what each must be, what differs from it on this machine, and whether it would work.

Standard library only: it runs on the droplet.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

OWNER = (0, 0)  # user and group of every file: root's
Run = Callable[[Sequence[str]], "tuple[int, str]"]  # a command's exit status and output


class ConfigError(Exception):
    """The set cannot be made what it must be; the text says why and what became of it.

    ``output`` is what a validator printed.
    """

    def __init__(self, message: str, **output: str) -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Entry:
    """One member of a set: what must be at `path`.

    `kind` is file, link, directory or absent; `data` is a content or a target.
    """

    path: Path
    kind: str
    data: str = ""
    mode: int = 0
    secret: bool = False

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> Entry:
        """Build from one item of `files`. Raises ConfigError when it does not say exactly one thing."""
        path = Path(params["path"])
        said = {
            "file": params.get("content") is not None,
            "link": params.get("link") is not None,
            "directory": params.get("directory"),
            "absent": params.get("absent"),
        }
        given = [kind for kind in said if said[kind]]
        if len(given) != 1 or not path.is_absolute():
            raise ConfigError(
                f"{path}: give an absolute path and exactly one of content, link, directory, absent"
            )
        default_mode = {"file": "0644", "directory": "0755"}.get(given[0])
        mode = int(params.get("mode") or default_mode, 8) if default_mode else 0
        data = {"file": params.get("content"), "link": params.get("link")}.get(given[0]) or ""
        return cls(path, given[0], data, mode)

    @classmethod
    def from_secret(cls, path: str, content: str) -> Entry:
        """A file for root only, or none. Raises ConfigError for a path that is not absolute."""
        if not Path(path).is_absolute():
            raise ConfigError(f"{path}: give an absolute path")
        if not content:
            return cls(Path(path), "absent", secret=True)
        return cls(Path(path), "file", content, 0o600, secret=True)

    def found(self) -> Entry:
        """What is at the path now, in the same shape.

        `kind` is "other" for what we would never replace, such as a device.
        """
        try:
            status = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return Entry(self.path, "absent")
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            return Entry(self.path, "link", str(self.path.readlink()))
        if stat.S_ISDIR(status.st_mode):
            return Entry(self.path, "directory", "", mode)
        if stat.S_ISREG(status.st_mode):
            owned = (status.st_uid, status.st_gid) == OWNER
            # A file of another owner is never equal: its mode is reported as one we do not ask for.
            return Entry(
                self.path, "file", self.path.read_text("utf-8", "replace"), mode if owned else -1
            )
        return Entry(self.path, "other")

    def text(self) -> str:
        """What a diff shows."""
        return {"file": self.data, "link": f"-> {self.data}\n", "directory": "directory\n"}.get(
            self.kind, ""
        )

    def title(self) -> str:
        """The header of its diff."""
        return f"{self.path} ({self.kind}{f' {self.mode:04o}' if self.mode > 0 else ''})"

    def install(self, path: Path | None = None) -> None:
        """Put it at `path` (default: its own), atomically: a reader sees the old or the new, never a half."""
        path = path or self.path
        if self.kind == "absent":
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.kind == "directory":
            path.mkdir(exist_ok=True)
            os.chown(path, *OWNER)
            path.chmod(self.mode)
            return
        beside = path.with_name(f".{path.name}.cimt")
        beside.unlink(missing_ok=True)
        if self.kind == "link":
            beside.symlink_to(self.data)
        else:
            # Created with its mode: no moment in which others can read it.
            with open(
                os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self.mode),
                "w",
                encoding="utf-8",
            ) as out:
                out.write(self.data)
                os.fchmod(out.fileno(), self.mode)
                os.fchown(out.fileno(), *OWNER)
                out.flush()
                os.fsync(out.fileno())
        os.replace(beside, path)


@dataclass(frozen=True)
class Change:
    """A member that differs: what must be there, and what is."""

    wanted: Entry
    found: Entry

    def diff(self) -> dict[str, str]:
        """For Ansible; a secret's content shows nowhere."""
        wanted, found = self.wanted, self.found
        return {
            "before_header": found.title(),
            "after_header": wanted.title(),
            "before": "(hidden)\n" if wanted.secret and found.data else found.text(),
            "after": "(hidden, differs)\n" if wanted.secret and wanted.data else wanted.text(),
        }


def entries(files: list[dict[str, Any]], secret_files: dict[str, str]) -> list[Entry]:
    """The set from the module's parameters. Raises ConfigError when one does not say what it must be."""
    secrets = [Entry.from_secret(path, content) for path, content in secret_files.items()]
    return [*map(Entry.from_params, files), *secrets]


def changes(wanted: list[Entry]) -> list[Change]:
    """What differs. Raises ConfigError when something is in the way that is no file."""
    compared = [Change(entry, entry.found()) for entry in wanted]
    differing = [
        one for one in compared if replace(one.found, secret=one.wanted.secret) != one.wanted
    ]
    blocked = [
        str(one.wanted.path)
        for one in differing
        if one.found.kind == "other"
        or (one.found.kind == "directory" and one.wanted.kind != "directory")
    ]
    if blocked:
        raise ConfigError(f"move these away first, they are not files: {', '.join(blocked)}")
    return differing


def validate(
    candidate: list[Entry], validators: list[dict[str, Any]], run: Run, *, check_mode: bool
) -> list[str]:
    """Run the validators where the candidate is in place. Returns those left out (check mode only).

    Raises ConfigError when it does not pass one.
    """
    left_out: list[str] = []
    if not (candidate and validators):
        return left_out
    with tempfile.TemporaryDirectory(prefix="cimt-candidate-") as scratch:
        for entry in candidate:
            place = Path(scratch, "tree", *entry.path.parts[1:])
            if entry.kind == "absent":
                place.parent.mkdir(parents=True, exist_ok=True)
                os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))  # how an overlay says "deleted"
            else:
                entry.install(place)
        script = overlay(sorted({entry.path.parts[1] for entry in candidate}))
        inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        for validator in validators:
            argv = validator["argv"]
            path = os.environ["PATH"] + ":/usr/sbin:/sbin"
            if check_mode and not shutil.which(argv[0], path=path):
                # The package which brings it would have been installed by now.
                left_out.append(argv[0])
                continue
            status, out = run([*inside, scratch, *argv])
            missing = [line for line in validator["prints"] if line not in out.splitlines()]
            if status or missing:
                unsaid = f"it does not print: {'; '.join(missing)}"
                why = validator["message"] or (unsaid if missing and not status else out.strip())
                raise ConfigError(
                    f"nothing was changed: the new files do not pass `{shlex.join(argv)}`: {why}",
                    output=out,
                )
    return left_out


def overlay(tops: list[str]) -> str:
    """Shell script that runs its other arguments where $1/tree is merged into the file system.

    Only that process and its children see it so: it runs in a mount namespace of its own.
    """
    steps = [
        "set -e",
        'scratch=$1; shift; mkdir -p "$scratch/tree" "$scratch/mnt"',
        'mount -t tmpfs none "$scratch/mnt"',
    ]
    for top in tops:
        steps += [
            f'layer="$scratch/mnt/{top}"; mkdir "$layer" "$layer/work"',
            f'cp -a "$scratch/tree/{top}" "$layer/upper"',
            f'layers="lowerdir=/{top},upperdir=$layer/upper,workdir=$layer/work"',
            f'mount -t overlay none -o "$layers" /{top}',
        ]
    return "\n".join([*steps, 'exec "$@"'])
