"""Small pieces of Markdown."""

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(``.+?``|`[^`]+`|(?<![\w-])--[a-z][\w.]*\w)")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def prose(text: str) -> str:
    """Plain text as Markdown: formulas keep their stars, flags are code, arXiv numbers links."""
    return "".join(map(_piece, _CODE.split(text)))


def _piece(text: str) -> str:
    if text.startswith("--"):
        return code(text)
    return text if text.startswith("`") else _escaped(text)


def _escaped(text: str) -> str:
    text = re.sub(r"([*_<\[\]|])", r"\\\1", text)
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def blocks(text: str) -> str:
    """A docstring as Markdown: indented paragraphs are formulas or code, the others are prose."""
    parts = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            lines = [line[4:] for line in paragraph.splitlines()]
            parts.append("\n".join(["```text", *lines, "```"]))
        elif paragraph:
            parts.append(prose(paragraph))
    return "\n\n".join(parts)


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return prose(" ".join(text.split()))


def code(text: str) -> str:
    """Code that may stand in a table."""
    return f"`{text}`" if text else ""


def type_name(text: str) -> str:
    """A type or the words that are allowed, for a table: `int | None` is int, `a|b` is a or b."""
    names = [name.strip() for name in text.split("|") if name.strip() != "None"]
    return " or ".join(map(code, names))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def styled(name: str, text: str) -> str:
    """Markdown in an element of this class; see docs/stylesheets/extra.css."""
    return f'<div class="{name}" markdown>\n\n{text}\n\n</div>'


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", *parts]) + "\n"
