"""Threads on which requests become jobs: a few at a time of each tenant, so that others find one.

A request is written in its format and tokenized there, which takes seconds for a long text.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from lorica.serve.refusals import TooManyRequests

T = TypeVar("T")
THREADS = 32
AT_ONCE = 4
"""Requests of one tenant that are on a thread. The rest wait in line."""
WAITING = 256
"""Requests of one tenant that are on a thread or wait for one. Further ones are refused."""


class ClientGone(Exception):
    """The client went away before its request had a turn."""


@dataclass
class _Line:
    """The requests of a tenant. count: of all, those on a thread included."""

    count: int = 0
    threads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))


class Turns:
    """Its methods belong to one event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = defaultdict(_Line)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lorica-accept")

    async def run(
        self, tenant: str, is_gone: Callable[[], Awaitable[bool]], work: Callable[[], T]
    ) -> T:
        """Do `work` on a thread when it is the tenant's turn.

        is_gone: whether nobody waits for it any more; asked when its turn has come.
        Raises: TooManyRequests; ClientGone; what `work` raises.
        """
        line = self._lines[tenant]
        if line.count >= WAITING:
            raise TooManyRequests(
                f"{WAITING} requests of this tenant wait to be read.",
                fix="ask again later",
                retry_after=1.0,
            )
        line.count += 1
        try:
            async with line.threads:
                if await is_gone():
                    raise ClientGone
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            line.count -= 1
            if not line.count:
                del self._lines[tenant]
