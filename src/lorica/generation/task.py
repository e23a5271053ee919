"""Prompts that are continued together, with all that their continuation depends on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from lorica.core.draws import site_seed
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops

OnText = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Task:
    """room: the most new tokens of each prompt. slots: the most rows of a forward pass.

    conditions: one for each prompt; None: none. on_text: gets the text of a single prompt piece by
    piece. on_rows: called with the number of rows that ended. numbers: of the prompts, among those
    that the user gave.
    """

    prompts: Sequence[list[int]]
    room: Sequence[int]
    sampling: Sampling
    stops: Stops
    slots: int
    conditions: Sequence[str] | None = None
    on_text: OnText | None = None
    on_rows: Callable[[int], object] = field(default=lambda count: None)
    numbers: Sequence[int] = ()

    def part(self, numbers: Sequence[int]) -> Self:
        """The task for some of the prompts."""
        return replace(
            self,
            prompts=[self.prompts[i] for i in numbers],
            room=[self.room[i] for i in numbers],
            conditions=self.conditions and [self.conditions[i] for i in numbers],
            numbers=[self.numbers[i] for i in numbers],
        )

    def sampling_of(self, i: int) -> Sampling:
        """Of prompt i: with its room, and a seed of its own."""
        seed = site_seed((self.sampling.seed, self.numbers[i]), "row")
        return replace(self.sampling, max_new_tokens=self.room[i], seed=seed)
