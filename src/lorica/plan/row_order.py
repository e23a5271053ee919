"""The order in which a run takes its rows, without torch: that of lorica.training.plan.row_order.

torch draws a permutation on the CPU with the numbers of a Mersenne twister (MT19937), which numpy
has too: position i changes places with i + (number i) mod (rows - i). A test compares the two.
"""

import numpy as np


def row_order(rows: int, seed: int, count: int) -> list[int]:
    """Indices of the first `count` rows of a run: one shuffle of all rows after another."""
    indices: list[int] = []
    epoch = 0
    while len(indices) < count:
        indices += _shuffled(rows, seed * 1_000_003 + epoch, count - len(indices))
        epoch += 1
    return indices


def _shuffled(rows: int, seed: int, count: int) -> list[int]:
    """The first `count` elements of torch.randperm(rows) after manual_seed(seed)."""
    count = min(count, rows)
    twister = np.random.RandomState(seed % 2**32)  # torch takes the low 32 bits, too
    draws = twister.randint(0, 2**32, size=count, dtype=np.uint32).tolist()
    moved: dict[int, int] = {}  # place -> the element that is in it, where that is not its own
    chosen = []
    for i, draw in enumerate(draws):
        j = i + draw % (rows - i) if i < rows - 1 else i
        chosen.append(moved.get(j, j))
        moved[j] = moved.get(i, i)
    return chosen
