"""The rules of each runtime, from runtimes.toml: what it reads, and what decides how to export."""

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

from lorica import plain_files

Change = Literal["linear", "embedding", "bias", "whole"]
TABLE = Path(__file__).with_name("runtimes.toml")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """reads: kinds of change that an adapter may have. ranks: values of its setting for the largest
    rank, (): any. head_sizes: of attention; (): it does not say. See runtimes.toml."""

    name: str
    title: str
    version: str
    checked: date
    reads: tuple[Change, ...]
    ranks: tuple[int, ...]
    head_sizes: tuple[int, ...]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name and the release that the rules were read off."""
        return f"{self.title} {self.version}"

    def setting_for(self, rank: int) -> int | None:
        """The smallest value of its setting for the largest rank that has room for `rank`; None:
        there is none."""
        return min((r for r in self.ranks if r >= rank), default=None) if self.ranks else rank


@cache
def runtimes() -> dict[str, Runtime]:
    """Every runtime by its name."""
    table = tomllib.loads(plain_files.read_text(TABLE))
    return {name: _runtime(name, fields) for name, fields in table.items()}


def _runtime(name: str, fields: dict) -> Runtime:
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    return Runtime(**{**fields, **lists, "name": name})
