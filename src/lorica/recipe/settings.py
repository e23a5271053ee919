"""Settings before they are judged: nested plain data that knows where each part was written."""

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from lorica.errors import ConfigError

Where = tuple[str, ...]
"""The path of a setting: ("data", "max_length")."""


@dataclass(frozen=True)
class Mistake:
    """One setting that cannot be used. `what` starts with the setting's name."""

    path: Where
    what: str


@dataclass
class Settings:
    """Nested plain data, and the place each part came from: a file's line, or a flag."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Where, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    """What was wrong already in the writing: a key set twice, a tag."""
    texts: set[Where] = field(default_factory=set)
    """Values that are still text of a flag, because only the chosen method knows their type."""

    def place(self, path: Where) -> str:
        """The place of a setting, or of the nearest part around it; "" when unknown."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def put(self, path: Where, value: Any, place: str = "") -> None:
        """Set one nested value, in place, making the mappings on the way.

        Where something else than a mapping stands in the way, that is left for the judge.
        """
        node: Any = self.data
        for key in path[:-1]:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
            if not isinstance(node, dict):
                return
        node[path[-1]] = value
        self.places = {p: w for p, w in self.places.items() if p[: len(path)] != path}
        if place:
            self.places[path] = place

    def get(self, path: Where) -> Any:
        """The nested value, None where there is none."""
        node: Any = self.data
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def told(self, mistake: Mistake) -> str:
        """A mistake behind its file and line; one in a flag begins with the flag's name."""
        place, what = self.place(mistake.path), mistake.what
        if not place or what.startswith("--"):
            return what
        if place == f"--{what.split()[0]}":
            return f"--{what}"
        return f"{place}: {what}"


def raise_mistakes(mistakes: list[Mistake], settings: Settings) -> NoReturn:
    """Raise one ConfigError that tells all mistakes, in the order of their places."""
    told = list(dict.fromkeys(settings.told(m) for m in mistakes))
    told.sort(key=_by_line)
    what = told[0] if len(told) == 1 else "\n  ".join([f"{len(told)} settings are wrong:", *told])
    raise ConfigError(what, fix="`lorica train --help` lists every setting")


def _by_line(told: str) -> int:
    found = re.match(r".*?:(\d+): ", told)
    return int(found[1]) if found else 0
