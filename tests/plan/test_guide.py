"""The article's own case: LLaMA-7B on Alpaca with an A100."""

import pytest

from benchmarks.plan import guide


@pytest.fixture(scope="module")
def table():
    return guide.table()


def test_the_page_has_the_plan_of_today(table):
    page = guide.PAGE.read_text(encoding="utf-8")
    shown = page.split(guide.BEGIN)[1].split(guide.END)[0]
    assert shown == table, "run: python -m benchmarks.plan.guide --write"


def test_the_article_is_near_the_plan_of_its_way(table):
    """21 GB and 192 minutes for LoRA, 22 GB and 162 minutes for LLaMA-Adapter."""
    lines = table.splitlines()
    for name, gigabytes, minutes in (("LoRA", 21, 192), ("LLaMA-Adapter", 22, 162)):
        memory, time = (
            next(line for line in lines if line.startswith(f"| {name}, {what} |")).split("|")
            for what in ("memory", "time")
        )
        assert abs(float(memory[3].split()[0]) / gigabytes - 1) < 0.15
        low, high = (int(word.strip("()")) for word in time[3].split()[2::2])
        assert low < minutes < high
