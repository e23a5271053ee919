"""What a choice depends on: the rows, the base, the memory, the goal and the engine that serves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Goal = Literal["quality", "forget-less", "small", "fast"]
Engine = Literal["lorica", "vllm", "llamacpp"]
Settings = Mapping[str, Any]
"""Settings of a recipe, as TrainConfig takes them."""

Peak = Callable[[Settings], int]
"""The peak memory in bytes of a training with these settings, on the base and rows at hand."""


@dataclass(frozen=True)
class Rows:
    """Counts over the rows of the file, before the length limit.

    kind: format of the rows, as `data.format`. label_tokens: per epoch; 0 for classes.
    classes, conditions: rows of each. overlong, policy: rows above max_length, and what happens to
    them. conflicting: (prompts with several different answers, rows that have them).
    structure: of the answers, as data/answers.py measures it: above 1, they are random texts. None:
    too few answers to tell.
    problems: what would stop the training. notices: what else the check says.
    """

    kind: str
    rows: int
    train: int
    validation: int
    label_tokens: int
    longest: int = 0
    median: int = 0
    max_length: int | None = None
    overlong: int = 0
    policy: str = "raise"
    classes: Mapping[str, int] = field(default_factory=dict)
    conditions: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    empty: int = 0
    conflicting: tuple[int, int] = (0, 0)
    structure: float | None = None
    problems: Sequence[str] = ()
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Base:
    """hidden: hidden size; None: unknown. layers: (inputs, outputs) of each linear layer but the
    output head."""

    name: str
    hidden: int | None
    parameters: int
    layers: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Situation:
    """memory: bytes that a training may take; None: no limit. peak: predicts what it takes.
    device: a name for messages. kind: of the device."""

    rows: Rows
    base: Base
    goal: Goal = "quality"
    serve: Engine = "lorica"
    memory: int | None = None
    peak: Peak | None = None
    device: str = "this machine"
    kind: Literal["cpu", "cuda"] = "cpu"

    @property
    def engine(self) -> str:
        """The engine that serves, as its authors write it."""
        return {"lorica": "lorica serve", "vllm": "vLLM", "llamacpp": "llama.cpp"}[self.serve]

    @property
    def several_conditions(self) -> bool:
        return len(self.rows.conditions) > 1
