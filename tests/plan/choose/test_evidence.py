"""Every citation of `lorica choose` resolves."""

import ast
import re
from pathlib import Path

import pytest

import lorica.plan.choose
from lorica.plan.choose.alternatives import doubts_of, ruled_out
from lorica.plan.choose.evidence import evidence
from lorica.plan.choose.flowchart import EDGES
from lorica.plan.choose.rank import choose_rank
from lorica.plan.choose.situation import Base, Rows, Situation

ROOT = Path(__file__).parents[3]
SOURCES = sorted(Path(lorica.plan.choose.__file__).parent.glob("*.py"))
SOURCES.append(ROOT / "src/lorica/cli/tried.py")
ENTRIES = evidence().values()


def anchors_of(page: str) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def cited() -> set[str]:
    """Every text in the sources that looks like the id of an entry."""
    prefix = {key.partition("-")[0] for key in evidence()}
    pattern = re.compile(rf"({'|'.join(prefix)})-[a-z0-9-]+")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    texts = {n.value for t in trees for n in ast.walk(t) if isinstance(n, ast.Constant)}
    return {text for text in texts if isinstance(text, str) and pattern.fullmatch(text)}


def test_every_id_exists_and_every_entry_is_cited():
    assert cited() == set(evidence())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.id)
def test_it_resolves(entry):
    assert entry.says
    if entry.kind == "paper":
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", entry.where)
        return
    page = (ROOT / entry.where).read_text(encoding="utf-8")
    if entry.kind == "rule":
        assert entry.anchor in anchors_of(page)
        return
    rows = [line for line in page.splitlines() if line.startswith(entry.row)]
    assert any(all(text in row for text in entry.shows) for row in rows)
    for number in re.findall(r"\d+\.\d{2,}(?! %)", entry.says):
        assert number in page, f"{number} is not in {entry.where}"


@pytest.mark.parametrize("r", [4, 8, 64])
def test_what_is_cited_has_the_figures_of_the_reason(r):
    """Of decimals, which are measured: a reader looks them up in the row that is named."""
    situation = Situation(Rows("prompt", 2000, 1900, 100, 100_000), Base("b", 64, 1, [(64, 64)]))
    (otherwise,) = (edge for edge in EDGES if edge.name == "otherwise")
    rank = choose_rank(situation)
    reasons = [*ruled_out(situation, otherwise, r), *doubts_of(situation, otherwise, rank, r)]
    checked = 0
    for reason in reasons:
        cited = " ".join(evidence()[key].says for key in reason.evidence)
        for figure in re.findall(r"\d+\.\d+", reason.why):
            if f"{figure} times" not in reason.why:  # a setting, not a measurement
                assert figure in cited, (reason.what, figure)
                checked += 1
    assert checked >= 5
