"""A lease: what a request holds while its answer is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from lorica.serve.generations import Generation


@dataclass(eq=False)
class Lease:
    """The right to use a generation under one of its conditions, until `release`.

    key: of the form in the bank. It stays in the bank from `ensure` to `release`.
    """

    generation: Generation
    condition: str | None
    key: str
    _is_resident: Callable[[str], bool]
    _on_ensure: "Callable[[Lease, bool], None]"
    _on_release: "Callable[[Lease], None]"
    is_released: bool = False

    @property
    def is_resident(self) -> bool:
        """Whether the form is in the bank."""
        return self._is_resident(self.key)

    def ensure(self, *, waits: bool = True) -> None:
        """Put the form into the bank, from the adapter's folder, unless it is in it. May be slow.
        Does nothing if the lease is released. waits: for room, for a while.

        Raises: NoRoom; Unavailable if the folder no longer holds the adapter.
        """
        self._on_ensure(self, waits)

    def release(self) -> None:
        """Give the lease back. Quick, on any thread; a second time it does nothing."""
        self._on_release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
