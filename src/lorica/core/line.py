"""Rows that lie end to end, parts of which have an adapter of their own: several runs in one pass.

At every site the line is cut where the adapters change, and put together again. Unlike core.mixed
this has gradients: what is cut is cut once for all parts, so that the way back joins them as well.

    T tokens   I in_features   O out_features
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, cat, nn

from lorica.core.adapter import Adapter, BaseLayer, acts
from lorica.errors import ConfigError

Line = tuple[tuple[str, int], ...]
"""(adapter, its tokens) of each part, in their order."""


def before_along(line: Line, port: Any, x: Tensor) -> Tensor:
    """x (1, T, I), or ids (1, T), each part of it through `Adapter.before`."""
    acting = _acting(line, port)
    if not any(acts(adapter, "before") for adapter in acting.values()):
        return x
    parts = zip(line, _cut(line, x), strict=True)
    return cat([acting[n].before(part) if n in acting else part for (n, _), part in parts], dim=1)


def after_along(line: Line, port: Any, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
    """y (1, T, O), each part of it through `Adapter.after`. base: the layer without adapters."""
    acting = _acting(line, port)
    if not any(acts(adapter, "after") for adapter in acting.values()):
        return y
    cut = _cut(line, x)
    kinds = {type(adapter) for adapter in acting.values()}
    if len(kinds) == 1 and all(name in acting for name, _ in line):
        each, sizes = [acting[name] for name, _ in line], [size for _, size in line]
        if (done := kinds.pop().after_line(each, sizes, x, y)) is not None:
            return done
    parts = zip(line, cut, _cut(line, y), strict=True)
    done = [port.after_of(n, xs, ys, base) if n in acting else ys for (n, _), xs, ys in parts]
    return cat(done, dim=1)


def shorter(line: Line, kept: Tensor) -> Line:
    """The line of the positions in `kept` (N,), which are in their order."""
    if not line:
        return line
    ends = torch.tensor(list(accumulate(size for _, size in line)), device=kept.device)
    counts = torch.searchsorted(kept.contiguous(), ends).diff(prepend=ends.new_zeros(1)).tolist()
    return tuple((name, n) for (name, _), n in zip(line, counts, strict=True))


def _acting(line: Line, port: nn.ModuleDict) -> Mapping[str, Adapter]:
    return {name: cast(Adapter, port[name]) for name, _ in line if name in port}


def _cut(line: Line, x: Tensor) -> tuple[Tensor, ...]:
    sizes = [size for _, size in line]
    if x.shape[:1] != (1,) or x.ndim < 2 or x.shape[1] != sum(sizes):
        raise ConfigError(
            f"a layer sees {tuple(x.shape)}, and adapters are set for a line of {sum(sizes)} "
            "tokens.",
            fix="adapt no layer that is given other tokens than the batch has (experts, an output "
            "head)",
        )
    return x.split(sizes, dim=1)
