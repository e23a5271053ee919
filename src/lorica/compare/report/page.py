"""Renders a page: one template, its style and its script inside, and nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from lorica import plain_files
from lorica.compare.report.study import Detail
from lorica.compare.report.text import visible

FOLDER = Path(__file__).parent
MAX_BYTES = 2**20
DETAILS = (Detail(80, 8, 1500), Detail(40, 6, 600), Detail(20, 4, 200), Detail(10, 2, 80))
"""Tried in this order until a page is at most MAX_BYTES long."""

ABSENT: Mapping[str, Any] = {
    **dict.fromkeys(("table", "measures", "forgetting", "rates", "settings", "machine")),
    **dict.fromkeys(("tables", "legend", "swatches", "fronts", "curves", "heats", "samples"), ()),
    **dict.fromkeys(("failures", "notices", "missing", "versions"), ()),
}
"""Sections that a page may lack."""


def render(values_at: Callable[[Detail], Mapping[str, Any]]) -> str:
    """The page with as much detail as fits. values_at: the values of the template."""
    page = ""
    for detail in DETAILS:
        values = {**ABSENT, **values_at(detail)}
        page = _environment().get_template("template.html").render(values)
        if len(page.encode()) <= MAX_BYTES:
            break
    return page


@cache
def _environment() -> Environment:
    """Every text is escaped, and what would hide or reorder other text is written out."""
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _read("style.css"), _read("script.js")
    environment.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        "policy": "; ".join(
            (
                "default-src 'none'",
                f"style-src '{_hash(style)}'",
                f"script-src '{_hash(script)}'",
                "base-uri 'none'",
                "form-action 'none'",
                "require-trusted-types-for 'script'",
                "trusted-types 'none'",
            )
        ),
    }
    return environment


def _finalize(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _read(name: str) -> str:
    return plain_files.read_text(FOLDER / name, follow=True)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
