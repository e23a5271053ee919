"""Docstrings of this package as Markdown, for mkdocstrings.

`name: meaning` becomes an item of a list where `name` is a parameter or a field; `Raises:` and
`Returns:` begin a paragraph of their own; indented paragraphs are code.
"""

import re
from collections.abc import Iterable
from typing import Any

import griffe

from docs.generate.markdown import prose

_BOUNDED = re.compile(r"Annotated\[(.+?), \w+\([^()]*\)\]")
_TITLE = r"(?:Raises|Returns|Warns|Yields): ?"


class Docstrings(griffe.Extension):
    """Rewrites each docstring before mkdocstrings renders it, and shortens types with bounds."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **rest: Any) -> None:
        """`Annotated[int, Bounds(ge=1)]` is shown as `int`."""
        if attr.annotation is not None:
            attr.annotation = _BOUNDED.sub(r"\1", str(attr.annotation))

    def on_instance(self, *, obj: griffe.Object, **rest: Any) -> None:
        if not obj.docstring:
            return
        names = [name for name, member in obj.members.items() if member.is_attribute]
        if isinstance(obj, griffe.Function):
            names = [parameter.name for parameter in obj.parameters]
        obj.docstring.value = as_markdown(obj.docstring.value, names)


def as_markdown(text: str, names: Iterable[str] = ()) -> str:
    """The docstring as Markdown. names: the parameters or fields that it may explain."""
    return "\n\n".join(_paragraph(paragraph, list(names)) for paragraph in text.split("\n\n"))


def _paragraph(text: str, names: list[str]) -> str:
    if text.startswith("    ") or text.lstrip().startswith(">>>"):
        lines = [line.removeprefix("    ") for line in text.splitlines()]
        return "\n".join(["```python", *lines, "```"])
    text = " ".join(line.strip() for line in text.splitlines())
    name = "|".join(map(re.escape, names)) or "(?!)"
    pieces = re.split(rf"(?:^|(?<=[.;] ))(?=(?:{_TITLE}|(?:{name})(?:, (?:{name}))*: ))", text)
    parts: list[str] = []
    in_list = False
    for piece in filter(None, map(str.strip, pieces)):
        head, _, meaning = piece.partition(":")
        was_in_list, in_list = in_list, all(word in names for word in head.split(", "))
        if in_list:
            parts += [*[""][was_in_list:], f"- `{head}`: {prose(meaning.strip())}"]
        elif re.match(_TITLE, piece):
            parts += ["", f"**{head}**: {prose(meaning.strip())}"]
        else:
            parts.append(prose(piece))
    return "\n".join(parts).strip()
