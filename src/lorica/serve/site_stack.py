"""The resident forms at one layer, and how they act on the rows of a batch.

Each adapter's form stays a set of tensors of its own, so that removing it frees them. Beside them
lies one copy of the factors of the adapters that act now, stacked: it changes when the batch does,
by the adapters that come and go, and not at every token.

    B rows   T tokens   I in_features   O out_features   R rank   n adapters
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from lorica.core.row_form import RowForm
from lorica.errors import ConfigError
from lorica.kernels.stacked import (
    Groups,
    add_each,
    add_grouped,
    add_looped,
    add_one,
    rescale,
)

Keys = tuple[str | None, ...]
"""The adapter of each row of a batch; None: the base."""
Update = Callable[[Tensor, Tensor], None]
"""Adds to y (B, T, O), in place, what the adapters of the rows do with x (B, T, I)."""


class SiteStack:
    """forms: of the resident adapters, by key. order: the adapter in each place of the stack; None:
    it has moved to another place.

    wide_rows: up to so many rows, factors are stacked in float32; see stack_dtype.
    """

    def __init__(self, name: str, wide_rows: int = 0):
        self.name, self.wide_rows = name, wide_rows
        self.forms: dict[str, RowForm] = {}
        self.order: list[str | None] = []
        self.user: object = None  # whom the stack holds factors for
        self.a: Tensor | None = None  # (places, R, I)
        self.b: Tensor | None = None  # (places, O, R)

    def add(self, key: str, form: RowForm) -> None:
        self.forms[key] = form

    def remove(self, key: str) -> None:
        """Forget the adapter. Its place in the stack is zeroed, and is free for another."""
        if self.forms.pop(key, None) is None:
            return
        self.user = None  # it may hold tensors of the adapter
        if key in self.order and self.a is not None and self.b is not None:
            place = self.order.index(key)
            self.a[place], self.b[place], self.order[place] = 0, 0, None

    def update(self, keys: Keys) -> Update | None:
        """What the adapters of these rows do at this layer; None: nothing."""
        own = [key if key in self.forms else None for key in keys]
        distinct = list(dict.fromkeys(key for key in own if key is not None))
        if not distinct:
            return None
        if own == distinct[:1] * len(own):
            return self._for_one(distinct[0], len(own))
        steps = [self._low_rank(own), self._scaling(own)]
        return self._for_rows(len(own), [step for step in steps if step is not None])

    def _for_one(self, key: str, rows: int) -> Update:
        """All rows have one adapter. Batches may have another number of rows."""
        form = self.forms[key]
        wide = LowRank(self, [key] * rows) if form.r and rows <= self.wide_rows else None

        def update(x: Tensor, y: Tensor) -> None:
            if wide is not None and x.shape[1:-1] == (1,):
                wide(x, y)
            elif form.r:
                add_one(x, y, form.a, form.b)
            rescale(y, form.size, form.shift)

        return update

    def _for_rows(self, count: int, steps: Sequence[Update]) -> Update:
        name = self.name

        def update(x: Tensor, y: Tensor) -> None:
            if x.ndim != 3 or len(x) != count:
                raise ConfigError(
                    f"adapters are set for {count} rows, and layer {name} received "
                    f"{tuple(x.shape)}.",
                    fix="serve no adapter of a layer whose input has other rows than the batch "
                    "(experts)",
                )
            for step in steps:
                step(x, y)

        return update

    def _low_rank(self, own: Sequence[str | None]) -> "LowRank | None":
        ranked = [k if k is not None and self.forms[k].r else None for k in own]
        return LowRank(self, ranked) if any(key is not None for key in ranked) else None

    def _scaling(self, own: Sequence[str | None]) -> Update | None:
        """The sizes and shifts of the rows; rows without one are multiplied by 1."""
        forms = [None if key is None else self.forms[key] for key in own]
        sizes = _rows([form and form.size for form in forms], 1)
        shifts = _rows([form and form.shift for form in forms], 0)
        if sizes is None and shifts is None:
            return None
        return lambda x, y: rescale(y, sizes, shifts)

    def hold(
        self, keys: Sequence[str], dtype: torch.dtype, *, in_order: bool
    ) -> tuple[Tensor, Tensor]:
        """The stacked factors of `keys`: (n, R, I) and (n, O, R).

        Only what is not in the stack yet is copied into it. in_order: in the order of `keys`; else
        in that of self.order. Smaller ranks are filled up with zeros.
        """
        n, r = len(keys), max(self.forms[key].r for key in keys)
        a = self.a
        if a is None or len(a) < n or a.shape[1] != r or a.dtype != dtype:
            self._allocate(self.forms[keys[0]], 1 << (n - 1).bit_length(), r, dtype)
        assert self.a is not None and self.b is not None
        wanted = list(keys)
        if not in_order:
            held = self.order[:n]
            new = iter([key for key in keys if key not in held])
            wanted = [k if k is not None and k in keys else next(new) for k in held]
            wanted += list(new)
        for place, key in enumerate(wanted):
            if place >= len(self.order) or self.order[place] != key:
                self._write(place, key)
        return self.a[:n], self.b[:n]

    def _allocate(self, like: RowForm, places: int, r: int, dtype: torch.dtype) -> None:
        self.order, self.a, self.b = [], None, None  # the old ones are freed first
        self.a = like.a.new_zeros(places, r, like.a.shape[1], dtype=dtype)
        self.b = like.b.new_zeros(places, len(like.b), r, dtype=dtype)

    def _write(self, place: int, key: str) -> None:
        assert self.a is not None and self.b is not None
        form = self.forms[key]
        self.order = [None if held == key else held for held in self.order]
        self.a[place, : form.r], self.a[place, form.r :] = form.a, 0
        self.b[place, :, : form.r], self.b[place, :, form.r :] = form.b, 0
        self.order[place : place + 1] = [key]


class LowRank:
    """Adds the low-rank updates of the rows of a batch. keys: those of adapters with a rank."""

    def __init__(self, stack: SiteStack, keys: Sequence[str | None]):
        self.stack, self.keys = stack, keys
        self.distinct = list(dict.fromkeys(key for key in keys if key is not None))
        forms = [stack.forms[key] for key in self.distinct]
        self.pairs = [(form.a, form.b) for form in forms]
        self.device, own = forms[0].a.device, forms[0].a.dtype
        self.dtype = torch.float32 if len(keys) <= stack.wide_rows else own
        self.stacked: tuple[Tensor, Tensor, Groups | None] | None = None

    def __call__(self, x: Tensor, y: Tensor) -> None:
        if x.shape[1] != 1:
            add_looped(x, y, self.pairs, self.rows)
            return
        if self.stacked is None or self.stack.user is not self:
            self.stacked = self._stack()
        a, b, groups = self.stacked
        if len(a) == 1 and groups is None:
            add_one(x, y, a[0], b[0])
        elif groups is None:
            add_each(x, y, a, b)
        else:
            add_grouped(x, y, a, b, groups)

    @cached_property
    def rows(self) -> list[Tensor | slice]:
        """The rows of each adapter; a slice where they follow one another."""
        rows: list[Tensor | slice] = []
        for key in self.distinct:
            own = [i for i, other in enumerate(self.keys) if other == key]
            is_run = own[-1] - own[0] + 1 == len(own)
            run = slice(own[0], own[-1] + 1)
            rows.append(run if is_run else torch.tensor(own, device=self.device))
        return rows

    def _stack(self) -> tuple[Tensor, Tensor, Groups | None]:
        each = len(self.distinct) == len(self.keys)
        a, b = self.stack.hold(self.distinct, self.dtype, in_order=each)
        self.stack.user = self
        if each or (len(a) == 1 and None not in self.keys):
            return a, b, None
        places = {key: i for i, key in enumerate(self.stack.order[: len(a)])}
        numbers = [None if key is None else places[key] for key in self.keys]
        return a, b, Groups.of(numbers, len(a), self.device)


def _rows(vectors: Sequence[Tensor | None], neutral: float) -> Tensor | None:
    """(B, 1, O) from the vector of each row; None: no row has one."""
    like = next((vector for vector in vectors if vector is not None), None)
    if like is None:
        return None
    plain = torch.full_like(like, neutral)
    return torch.stack([plain if v is None else v for v in vectors]).unsqueeze(1)
