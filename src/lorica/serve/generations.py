"""Aliases and their generations: what a name points to from one load to the next."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorica.data.prompt_format import PromptFormat
from lorica.formats.adapter_file import AdapterFile
from lorica.serve.identity import bank_key
from lorica.serve.refusals import ConditionNotFound, Conflict, Unavailable


@dataclass(frozen=True, eq=False)
class Generation:
    """One load of one alias. It never changes.

    number: counts the loads of the alias from 1. digest: of the adapter's content.
    positions: of the context that the adapter takes for itself, in tokens.
    keys: condition -> key in the bank; an adapter without conditions has the one condition None.
    prompt_format: how prompts were written in training; None: not recorded.
    notes: for a person, see ModelCard. notices: what could not be verified.
    is_link: the operator named a link to the folder.
    """

    alias: str
    number: int
    digest: str
    folder: Path
    is_link: bool
    method: str
    positions: int
    keys: Mapping[str | None, str]
    prompt_format: PromptFormat | None
    notes: Mapping[str, str]
    notices: tuple[str, ...]
    loaded_at: float

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(condition for condition in self.keys if condition is not None)

    def key_of(self, condition: str | None) -> str:
        """The key in the bank. Raises: ConditionNotFound, which names the known conditions."""
        if condition not in self.keys:
            raise ConditionNotFound(self.alias, condition, self.conditions)
        return self.keys[condition]


@dataclass(eq=False)
class Alias:
    """live: what requests get. last: the number of the newest generation.

    is_registered: it is listed, and not loaded yet.
    failure: why the last load failed. lost: a generation that was evicted and could not be read
        again, and why. loading: orders the loads of the alias.
    """

    name: str
    live: Generation | None = None
    last: int = 0
    pinned: bool = False
    is_registered: bool = False
    failure: str | None = None
    lost: tuple[Generation, str] | None = None
    is_loading: bool = False
    loading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_listed(self) -> bool:
        return self.live is not None or self.is_registered

    def check_generation(self, expected: int | None) -> None:
        """Raises: Conflict unless `expected` is the number of the live generation; 0: none."""
        number = 0 if self.live is None else self.live.number
        if expected == 0 and number:
            raise Conflict(
                f"the name {self.name!r} is in use, with generation {number}.",
                fix=f"choose another name, or replace it: expected_generation {number}",
            )
        if expected not in (None, number):
            raise Conflict(
                f"{self.name!r} has generation {number}, and {expected} was expected.",
                fix="look at what it is now, and decide again",
            )

    def forget_loss(self, generation: Generation) -> None:
        """`generation` was read again."""
        if self.lost is not None and self.lost[0] is generation:
            self.lost = None

    def generation(self) -> Generation:
        """The live one. Raises: Unavailable if there is none yet."""
        if self.live is not None:
            return self.live
        if self.failure is not None and not self.is_loading:
            raise Unavailable(
                f"the adapter {self.name!r} could not be loaded.",
                fix="ask the operator: its state says why",
            )
        raise Unavailable(
            f"the adapter {self.name!r} is not loaded yet.", fix="ask again", retry_after=2.0
        )


def keys_of(file: AdapterFile, conditions: tuple[str, ...]) -> dict[str | None, str]:
    """The keys of a generation's forms. conditions: (): the adapter has none."""
    return {condition: bank_key(file, condition) for condition in conditions or (None,)}
