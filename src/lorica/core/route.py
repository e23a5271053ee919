"""Which adapters act on which tokens of a forward pass.

A route is one immutable value that the hooks of all adapted layers read. There are three kinds:

    Everywhere   the same adapters act on every token, whatever the shape of the batch
    ByRow        each row of a batch (B, ...) has an adapter of its own, or none
    BySegment    a packed batch (1, T, ...) is cut into segments of consecutive tokens

`activate` and `use` make the first kind, `mixed` the second, `train_each` the third. A layer cuts
its input with `split`, adapts every part, and puts the parts together with `join`.

    B rows   T tokens   S segments
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from lorica.core.draws import Seed
from lorica.errors import ConfigError


@dataclass(frozen=True)
class Segment:
    """Tokens that share adapters.

    adapters: names, applied in this order; () is the base.
    seed: what these adapters draw (dropout) follows from it; None: from torch's generators.
    """

    adapters: tuple[str, ...] = ()
    seed: Seed | None = None


class Route(ABC):
    """The adapters of every token. segments: in the order of `split`."""

    segments: tuple[Segment, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every adapter that acts somewhere, each once."""
        return tuple(dict.fromkeys(name for s in self.segments for name in s.adapters))

    @abstractmethod
    def split(self, x: Tensor, layer: str) -> Sequence[Tensor]:
        """The tokens of each segment. x: the input or the output of `layer`.

        Raises: ConfigError if x does not have the tokens that the route is made for.
        """

    @abstractmethod
    def join(self, x: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """x with the tokens of each segment replaced by its part."""

    def at(self, positions: Tensor) -> "Route":
        """The same route for a choice of tokens. positions: (N,), in ascending order."""
        return self


@dataclass(frozen=True)
class Everywhere(Route):
    """All tokens are one segment."""

    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, names: Iterable[str], seed: Seed | None = None) -> "Everywhere":
        return cls((Segment(tuple(dict.fromkeys(names)), seed),))

    def split(self, x: Tensor, layer: str) -> Sequence[Tensor]:
        return (x,)

    def join(self, x: Tensor, parts: Sequence[Tensor]) -> Tensor:
        return parts[0]


BASE = Everywhere((Segment(),))
"""No adapter acts."""


@dataclass(frozen=True)
class ByRow(Route):
    """A segment for each adapter; rows of the base belong to none.

    rows: the numbers of the rows of each segment, (n,) on the device; order: all of them together.
    count: rows of the batch.
    """

    segments: tuple[Segment, ...]
    rows: tuple[Tensor, ...] = field(compare=False)
    order: Tensor = field(compare=False)
    count: int

    @classmethod
    def of(cls, names: Sequence[str | None], device: torch.device) -> "ByRow":
        """names: the adapter of each row; None: the base."""
        distinct = [name for name in dict.fromkeys(names) if name is not None]
        rows = ([i for i, name in enumerate(names) if name == own] for own in distinct)
        index = tuple(torch.tensor(numbers, device=device) for numbers in rows)
        order = torch.cat(index) if index else torch.zeros(0, dtype=torch.long, device=device)
        return cls(tuple(Segment((name,)) for name in distinct), index, order, len(names))

    def split(self, x: Tensor, layer: str) -> Sequence[Tensor]:
        if len(x) != self.count:
            raise ConfigError(
                f"mixed() names adapters for {self.count} rows, and the batch has {len(x)} "
                f"(at layer {layer}).",
                fix="name one for each row; a packed batch is one row",
            )
        return x[self.order.to(x.device)].split([len(rows) for rows in self.rows])

    def join(self, x: Tensor, parts: Sequence[Tensor]) -> Tensor:
        if not parts:
            return x
        return x.index_copy(0, self.order.to(x.device), torch.cat(list(parts)).to(x.dtype))


@dataclass(frozen=True)
class BySegment(Route):
    """sizes: tokens of each segment, one after another in a packed batch."""

    segments: tuple[Segment, ...]
    sizes: tuple[int, ...]

    def split(self, x: Tensor, layer: str) -> Sequence[Tensor]:
        if x.shape[:1] != (1,) or x.ndim < 2 or x.shape[1] != sum(self.sizes):
            raise ConfigError(
                f"layer {layer} received {tuple(x.shape)}, and the packed batch has "
                f"{sum(self.sizes)} tokens.",
                fix="adapt no layer that is given other tokens than the batch has (experts, an "
                "output head)",
            )
        return x.split(self.sizes, dim=1)  # cut once, so that the gradients are joined once

    def join(self, x: Tensor, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=1)

    def at(self, positions: Tensor) -> "BySegment":
        ends = torch.tensor(list(accumulate(self.sizes)), device=positions.device)
        before = torch.searchsorted(positions.contiguous(), ends)
        return BySegment(self.segments, tuple(before.diff(prepend=ends.new_zeros(1)).tolist()))
