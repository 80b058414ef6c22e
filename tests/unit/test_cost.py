"""docs/cost.md prices what is declared: the droplet's size, the models, and sums that add up."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from local.droplet import machine
from testbed.tree import ROOT

PAGES = ("docs/cost.md", "docs/cost.pt-BR.md")
PAGE = (ROOT / PAGES[0]).read_text()
SETTINGS = yaml.safe_load((ROOT / "services/settings.yaml").read_text())["settings"]


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, without head and line, as cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[line.split("|")[1:-1] for line in block.splitlines()[2:]] for block in blocks]
    return [[[cell.strip(" *") for cell in row] for row in block] for block in rows]


def test_the_size_that_is_priced_is_the_one_that_is_declared() -> None:
    priced = {
        (int(cores), int(memory))
        for cores, memory in re.findall(r"droplet `s-(\d)vcpu-(\d)gb`: ", PAGE)
    }
    assert priced == {(machine.CPUS, machine.MEMORY_MB // 1024)}
    (cores, memory) = priced.pop()
    assert SETTINGS["DROPLET_SIZE"]["default"] == f"s-{cores}vcpu-{memory}gb"
    assert f"{cores} vCPU, {memory} GB, 60 GB disk" in PAGE
    assert f"({cores} vCPU, {memory} GB)" in (ROOT / "README.md").read_text()
    assert f"{cores} vCPU / {memory} GB" in (ROOT / "docs/setup.md").read_text()
    memory_file = (ROOT / "services/memory.yaml").read_text()
    assert f"of {memory * 1024};" in memory_file


def test_the_sums_add_up() -> None:
    seed, used, *_ = tables(PAGE)
    for column in (1, 2):
        numbers = [float(row[column]) for row in seed]
        assert sum(numbers[:-1]) == numbers[-1]
    numbers = [float(row[1]) for row in used]
    assert sum(numbers[:-1]) == numbers[-1]
    told = f"about {numbers[-1]:.0f} USD a month"
    assert told in (ROOT / "docs/setup.md").read_text(), told
    same = {row[0]: row[1] for row in used}
    assert same["Supabase Pro"] == next(row[2] for row in seed if row[0] == "Supabase Pro")
    assert same["droplet `s-2vcpu-2gb`"] == seed[0][2]


def test_the_models_of_the_settings_cost_what_the_api_counts() -> None:
    (models,) = [table for table in tables(PAGE) if table[0][0].startswith("`gpt-")]
    priced = {re.findall(r"`([^`]+)`", row[0])[0]: row[1:4] for row in models}
    for name in ("CHAT_MODEL", "EMBEDDING_MODEL"):
        assert SETTINGS[name]["default"] in priced
        assert f"`{SETTINGS[name]['default']}` (the default of `{name}`)" in PAGE
    table = json.loads((ROOT / "services/api/cimt_api/prices.json").read_text())
    counted = table["chat"] | table["embedding"]
    for model, told in priced.items():
        price = counted[model]["prices"][-1]
        assert told == [price.get(part, "") for part in ("input", "cached", "output")], model
    into, _, out = (float(price) for price in priced[SETTINGS["CHAT_MODEL"]["default"]])
    month = 30 * 1000 * (3000 * into + 400 * out) / 1e6
    assert f"are {month:.0f} a month with" in PAGE


@pytest.mark.parametrize("page", PAGES)
def test_both_pages_have_the_same_prices(page: str) -> None:
    def prices(text: str) -> list[list[list[str]]]:
        return [
            [re.findall(r"\d+(?:\.\d+)?", " ".join(row[1:-1])) for row in table]
            for table in tables(text)[:4]
        ]

    assert prices((ROOT / page).read_text()) == prices(PAGE)
    assert len(tables((ROOT / page).read_text())) == len(tables(PAGE)) == 5
