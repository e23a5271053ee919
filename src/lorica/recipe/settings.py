"""Settings before they are validated: nested plain data that knows where it was written."""

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lorica.errors import ConfigError

Where = tuple[str, ...]
"""The path of a setting: ("data", "max_length")."""


@dataclass(frozen=True)
class Mistake:
    """A setting that cannot be used. `what` begins with its name."""

    path: Where
    what: str


@dataclass
class Settings:
    """Nested plain data, and the place of each setting: a file and line, or a flag.

    mistakes: of the writing itself: a key set twice, a tag. texts: values that are still the text
    of a flag, because only the method knows their type.
    """

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Where, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    texts: set[Where] = field(default_factory=set)

    def place(self, path: Where) -> str:
        """The place of a setting, or of the nearest mapping around it; "" if unknown."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def put(self, path: Where, value: Any, place: str = "") -> None:
        """Set a nested value, and create the mappings on the way.

        If another value is where a mapping should be, nothing is set: validation reports it.
        """
        node = self.data
        for key in path[:-1]:
            if node.get(key) is None:
                node[key] = {}
            match node[key]:
                case dict() as inner:
                    node = inner
                case _:
                    return
        node[path[-1]] = value
        self.places = {p: w for p, w in self.places.items() if p[: len(path)] != path}
        if place:
            self.places[path] = place

    def get(self, path: Where) -> Any:
        """The nested value; None if there is none."""
        node: Any = self.data
        for key in path:
            match node:
                case dict():
                    node = node.get(key)
                case _:
                    return None
        return node

    def describe(self, mistake: Mistake) -> str:
        """A mistake with its file and line; one in a flag begins with the flag's name."""
        place, what = self.place(mistake.path), mistake.what
        if not place or what.startswith("--"):
            return what
        if place == f"--{what.split()[0]}":
            return f"--{what}"
        return f"{place}: {what}"


def raise_mistakes(
    mistakes: list[Mistake],
    settings: Settings,
    fix: str = "`lorica train --help` lists every setting",
) -> NoReturn:
    """Raise one ConfigError with all mistakes, in the order of their lines."""
    lines = list(dict.fromkeys(settings.describe(mistake) for mistake in mistakes))
    lines.sort(key=_line_number)
    what = lines[0]
    if len(lines) > 1:
        what = "\n  ".join([f"{len(lines)} settings are wrong:", *lines])
    raise ConfigError(what, fix=fix)


def _line_number(line: str) -> int:
    number = re.match(r".*?:(\d+): ", line)
    return int(number[1]) if number else 0
