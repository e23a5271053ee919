"""The order in which a run takes its rows, without torch: that of lorica.training.plan.row_order.

torch draws a permutation on the CPU with the numbers of a Mersenne twister (MT19937), which numpy
has too: position i changes places with i + (number i) mod (rows - i). A test compares the two.
"""

import numpy as np

from lorica.data.mixture import Mixture


def row_order(rows: int, seed: int, count: int, mixture: Mixture | None = None) -> list[int]:
    """Indices of the first `count` rows of a run: one shuffle of all rows after another."""
    indices: list[int] = []
    epoch = 0
    while len(indices) < count:
        indices += _shuffled(rows, seed * 1_000_003 + epoch, count - len(indices), mixture)
        epoch += 1
    return indices


def _shuffled(rows: int, seed: int, count: int, mixture: Mixture | None) -> list[int]:
    """The first `count` rows of an epoch."""
    twister = np.random.RandomState(seed % 2**32)  # torch takes the low 32 bits, too
    if mixture is None:
        return _permutation(twister, rows, count)
    used: list[int] = []
    for start, stop, wanted in mixture.parts:
        whole, rest = divmod(wanted, max(stop - start, 1))
        used += [*range(start, stop)] * whole
        if rest:
            used += [start + i for i in _permutation(twister, stop - start, stop - start)[:rest]]
    return [used[i] for i in _permutation(twister, len(used), count)]


def _permutation(twister: np.random.RandomState, rows: int, count: int) -> list[int]:
    """The first `count` elements of torch.randperm(rows); all of them take rows - 1 numbers."""
    count = min(count, rows)
    draws = twister.randint(0, 2**32, size=min(count, rows - 1), dtype=np.uint32).tolist()
    moved: dict[int, int] = {}  # place -> the element that is in it, where that is not its own
    chosen = []
    for i, draw in enumerate([*draws, 0][:count]):
        j = i + draw % (rows - i)
        chosen.append(moved.get(j, j))
        moved[j] = moved.get(i, i)
    return chosen
