"""Processes that start again meet one another, and not those of an earlier attempt."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]

from lorica.errors import ResourceError
from lorica.training.placement.meeting import agreed_name


def meet(store: TCPStore, ranks: list[int], size: int, seconds: float = 20) -> list[str]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        own = [TCPStore("127.0.0.1", store.port, is_master=False) for _ in ranks]
        names = [
            pool.submit(agreed_name, mine, rank, size, seconds=seconds)
            for mine, rank in zip(own, ranks, strict=True)
        ]
        return [name.result() for name in names]


def test_every_attempt_has_a_name_of_its_own():
    store = TCPStore("127.0.0.1", 0, is_master=True)
    attempts = [meet(store, [0, 1, 2], 3) for _ in range(3)]
    assert all(len(set(names)) == 1 for names in attempts)
    assert len({names[0] for names in attempts}) == 3


@pytest.mark.parametrize("late", [[0], [1], [2]])
def test_the_living_are_told_from_the_dead(late):
    """In the first attempt one process never came; the others of it are dead in the second."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    early = [rank for rank in range(3) if rank not in late]
    with pytest.raises(ResourceError, match="did not meet"):
        meet(store, early, 3, seconds=0.2)
    assert len(set(meet(store, [0, 1, 2], 3))) == 1
