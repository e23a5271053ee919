"""The evidence that reasons cite: rows of our measured pages, papers, and rules with a source."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal


@dataclass(frozen=True)
class Evidence:
    """One entry of evidence.toml.

    says: what it says, with its numbers. where: a file of the repository, or arXiv:ID.
    row: how the line of that file begins; shows: texts that stand in this line. anchor: of a
    heading, for a rule. limits: what it does not say.
    """

    id: str
    kind: Literal["measured", "paper", "rule"]
    says: str
    where: str
    row: str = ""
    shows: tuple[str, ...] = ()
    anchor: str = ""
    limits: str = ""

    @property
    def place(self) -> str:
        """Where to look it up, in one phrase."""
        if self.anchor:
            return f"{self.where}#{self.anchor}"
        return f"{self.where}, row {self.row!r}" if self.row else self.where


@cache
def evidence() -> dict[str, Evidence]:
    """All entries by id."""
    text = files("lorica.plan.choose").joinpath("evidence.toml").read_text(encoding="utf-8")
    entries = tomllib.loads(text)
    return {
        key: Evidence(id=key, **{**entry, "shows": tuple(entry.get("shows", ()))})
        for key, entry in entries.items()
    }
