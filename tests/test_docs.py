"""What the documentation shows is what the commands print."""

from pathlib import Path

import pytest

from lorica.cli.catalogue import methods
from lorica.cli.methods import markdown_rows, row

ROOT = Path(__file__).parents[1]


def test_the_table_of_methods_is_that_of_the_source():
    page = (ROOT / "docs/methods/README.md").read_text()
    shown = page.split("<!-- lorica methods --markdown -->\n")[1].split("<!-- end -->")[0]
    assert shown.splitlines() == list(markdown_rows(list(methods().values())))


@pytest.mark.parametrize("name", methods())
def test_every_method_says_what_the_table_needs(name):
    entry = methods()[name]
    assert all(row(entry))
    assert entry.about
    if name not in ("full", "double_lora"):  # no paper of their own
        assert "arXiv:" in str(entry.facts["paper"])
    for option in entry.options:
        assert option.note, f"{name}.{option.name} has no line of help"
        assert option.default is not None
