"""What a pull request may not do to migrations, in real git repositories; `make migrate` asks the same rule."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.tree import ROOT
from tools import revisions
from tools.database import history

OLD, NEWEST = "20200101000000_old.sql", "20200103000000_newest.sql"
TABLE = "create table public.{} (id int);\n"


class Repository:
    """A branch `main` with two migrations, and a branch `work` that left it, which is checked out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.migrations = folder / "migrations"
        self.migrations.mkdir()
        self.git("init", "-q", "--initial-branch=main")
        self.write(OLD, TABLE.format("old"))
        self.write(NEWEST, TABLE.format("newest"))
        self.commit()
        self.git("checkout", "-qb", "work")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        return subprocess.run(
            ["git", *identity, *arguments],
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
        ).stdout

    def write(self, name: str, sql: str) -> None:
        (self.migrations / name).write_text(sql)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "change", "--allow-empty")

    def on_main(self, name: str) -> None:
        """Main moves on by a migration, while `work` stays where it is."""
        self.git("checkout", "-q", "main")
        self.write(name, TABLE.format("moved"))
        self.commit()
        self.git("checkout", "-q", "work")

    def found(self) -> dict[str, str]:
        """Rule to text; every finding says what to type."""
        refusals = history.against("main", self.folder)
        assert all("Next: " in refusal.text for refusal in refusals)
        return {f"{refusal.rule} {refusal.file}": refusal.text for refusal in refusals}

    def obey(self) -> None:
        """Type what the findings say, as far as it is a command of git."""
        for text in self.found().values():
            command = text.split("Next: git ", 1)[1]
            self.git(*command.split())


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path)
    before = set(Path(tempfile.gettempdir()).glob("cimt-revision-*"))
    yield made
    assert set(Path(tempfile.gettempdir()).glob("cimt-revision-*")) <= before


def test_a_new_migration_is_welcome_also_after_main_has_moved(repository: Repository) -> None:
    assert repository.found() == {}
    repository.write("20200105000000_new.sql", TABLE.format("new"))
    assert repository.found() == {}  # not committed yet
    repository.commit()
    repository.on_main("20200104000000_theirs.sql")
    assert repository.found() == {}  # which is not here, and was not deleted here


def test_a_late_migration_gets_a_number_that_is_free(repository: Repository) -> None:
    repository.write("20200102000000_late.sql", TABLE.format("late"))
    repository.write("20200102000001_later.sql", TABLE.format("later"))
    repository.commit()
    found = repository.found()
    assert set(found) == {"late 20200102000000_late.sql", "late 20200102000001_later.sql"}
    assert "is older than 20200103000000, which main has" in found["late 20200102000000_late.sql"]
    repository.obey()
    assert repository.found() == {}
    names = [path.name for path in sorted(repository.migrations.iterdir())]
    assert [name[15:] for name in names] == ["old.sql", "newest.sql", "late.sql", "later.sql"]


def test_a_migration_is_late_when_main_has_moved_past_it(repository: Repository) -> None:
    repository.write("20200104000000_mine.sql", TABLE.format("mine"))
    repository.commit()
    repository.on_main("20200105000000_theirs.sql")
    assert set(repository.found()) == {"late 20200104000000_mine.sql"}


def test_the_same_time_twice(repository: Repository) -> None:
    repository.write("20200104000000_mine.sql", TABLE.format("mine"))
    repository.commit()
    repository.on_main("20200104000000_theirs.sql")
    assert set(repository.found()) == {"duplicate 20200104000000_mine.sql"}
    repository.obey()
    assert repository.found() == {}
    repository.write("20990101000000_a.sql", TABLE.format("a"))
    repository.write("20990101000000_b.sql", TABLE.format("b"))
    assert set(repository.found()) == {"duplicate 20990101000000_b.sql"}


def test_an_edited_migration_and_its_free_comments(repository: Repository) -> None:
    repository.write(OLD, f"-- Another word.\n{TABLE.format('old')}\n")
    assert repository.found() == {}
    repository.write(OLD, TABLE.format("other"))
    repository.commit()
    assert set(repository.found()) == {f"edited {OLD}"}
    repository.write(OLD, "this is 'not SQL")
    assert set(repository.found()) == {f"edited {OLD}"}


def test_a_deleted_migration(repository: Repository) -> None:
    (repository.migrations / OLD).unlink()
    repository.commit()
    assert set(repository.found()) == {f"missing {OLD}"}
    repository.obey()
    assert repository.found() == {}


@pytest.mark.parametrize("new", ["20200101000000_renamed.sql", "20200109000000_old.sql"])
def test_a_renamed_migration(repository: Repository, new: str) -> None:
    repository.git("mv", f"migrations/{OLD}", f"migrations/{new}")
    repository.commit()
    assert set(repository.found()) == {f"renamed {new}"}
    repository.obey()
    assert repository.found() == {}


def test_renamed_and_edited_is_put_back_in_two_steps(repository: Repository) -> None:
    repository.git("mv", f"migrations/{OLD}", "migrations/20200101000000_other.sql")
    repository.write("20200101000000_other.sql", TABLE.format("other"))
    assert set(repository.found()) == {"renamed 20200101000000_other.sql"}
    repository.obey()
    assert set(repository.found()) == {f"edited {OLD}"}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"create table public.a (id int);\r\n", "bytes"),
        (b"\xef\xbb\xbfcreate table public.a (id int);\n", "bytes"),
        (b"select 'caf\xe9';\n", "bytes"),
        (b"create table public.a (id int);\ncommit;\nbegin;\n", "transaction"),
        (b"begin;\ncreate table public.a (id int);\ncommit;\n", "transaction"),
        (b"rollback;\n", "transaction"),
        (b"savepoint a;\n", "transaction"),
        (b"start transaction;\n", "transaction"),
        (b"lock table public.old in access exclusive mode;\n", "transaction"),
        (b"set local lock_timeout = '1s';\n", "transaction"),
        (
            b"create table public.a (id int);\ncreate index concurrently i on public.a (id);\n",
            "transaction",
        ),
        (b"create index concurrently on public.old (id);\n", "transaction"),
        (b"vacuum public.old;\nselect 1;\n", "transaction"),
    ],
)
def test_what_the_cli_could_not_apply_or_not_again(
    repository: Repository, content: bytes, rule: str
) -> None:
    (repository.migrations / "20200105000000_new.sql").write_bytes(content)
    assert {finding.split()[0] for finding in repository.found()} == {rule}


@pytest.mark.parametrize(
    "content",
    [
        b"create index concurrently i on public.old (id);\n",
        b"set lock_timeout = '1s';\nalter table public.old add column a int;\n",
        b"do $$ begin lock table public.old in access exclusive mode; end $$;\n",
        b"select 'begin; commit;', '\xc3\xa7'; -- begin;\n",
    ],
)
def test_what_the_findings_say_to_write(repository: Repository, content: bytes) -> None:
    (repository.migrations / "20200105000000_new.sql").write_bytes(content)
    assert repository.found() == {}


def test_a_checkout_has_the_line_ends_of_unix(repository: Repository) -> None:
    """What .gitattributes says of files that Windows wrote; and it says so of ours."""
    shutil.copy(ROOT / ".gitattributes", repository.folder)
    name = "20200105000000_new.sql"
    (repository.migrations / name).write_bytes(b"select 1;\r\n")
    repository.commit()
    (repository.migrations / name).unlink()
    repository.git("-c", "core.autocrlf=true", "checkout", "--", f"migrations/{name}")
    assert (repository.migrations / name).read_bytes() == b"select 1;\n"


def test_two_that_are_not_applied_have_one_number(repository: Repository) -> None:
    """Whoever has it in the database is not accused of a change of name."""
    theirs, mine = "20200104000000_theirs.sql", "20200104000000_mine.sql"
    files = history.read(repository.migrations) | {mine: TABLE.format("mine")}
    applied: dict[str, str | None] = {name: files[name] for name in (OLD, NEWEST)}
    applied[theirs] = TABLE.format("theirs")
    (refusal,) = history.refusals(applied, files, "the database", "git pull")
    assert (refusal.rule, refusal.file) == ("duplicate", mine)
    assert "the database has 20200104000000_theirs" in refusal.text
    assert "Next: git mv migrations/20200104000000_mine.sql" in refusal.text
    (renamed,) = history.refusals(
        applied, files | {mine: TABLE.format("theirs")}, "the database", "git pull"
    )
    assert renamed.rule == "renamed"


def test_what_is_no_migration(repository: Repository) -> None:
    repository.write("notes.txt", "")
    (repository.migrations / "folder").mkdir()
    assert set(repository.found()) == {"name notes.txt", "name folder"}


def test_a_revision_that_is_not_here(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(revisions.UnknownRevision, match="Next: git fetch"):
        history.against("nothing", repository.folder)
    shallow = tmp_path / "shallow"
    repository.write("20200105000000_new.sql", TABLE.format("new"))
    repository.commit()
    repository.on_main("20200104000000_theirs.sql")
    source = f"file://{repository.folder}"
    repository.git("clone", "-q", "--depth=1", "--no-single-branch", source, str(shallow))
    with pytest.raises(revisions.UnknownRevision, match="git fetch --unshallow"):
        history.against("origin/main", shallow)


def test_the_command_of_the_workflow_says_it_line_by_line(
    repository: Repository, tmp_path: Path
) -> None:
    late = "20200102000000_late.sql"
    repository.write(late, TABLE.format("late"))
    shutil.copytree(
        ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__")
    )
    done = subprocess.run(
        [sys.executable, "-m", "tools.database.safety", "--base", "main"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    (line,) = (one for one in done.stdout.splitlines() if ": late: " in one)
    assert line.startswith(f"migrations/{late}:0: late: out of order")
    assert re.search(rf"Next: git mv migrations/{late} migrations/\d{{14}}_late\.sql$", line)
