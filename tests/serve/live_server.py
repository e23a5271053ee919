"""The apps over a fake engine, in uvicorn on a thread: what clients of tests talk to."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lorica.serve import http
from lorica.serve.gate import Gate, Rules, allowed_hosts
from lorica.serve.metrics import Metrics
from lorica.serve.refusals import Unauthorized
from lorica.serve.run import Listener, bind, serve
from tests.serve.word_engine import WordEngine


@dataclass(frozen=True)
class Tenant:
    name: str
    models: tuple[str, ...] | None = None
    is_admin: bool = False

    def allows(self, model: str) -> bool:
        return self.models is None or model.partition(":")[0] in self.models


TENANTS = {"key-all": Tenant("all"), "key-alice": Tenant("small", ("alice",))}


def authenticate(header: str | None) -> Tenant:
    tenant = TENANTS.get((header or "").removeprefix("Bearer "))
    if tenant is None:
        raise Unauthorized("no valid key was given.", fix="send Authorization: Bearer KEY")
    return tenant


def everybody(header: str | None) -> Tenant:
    return Tenant("local", is_admin=True)


def create_gate(engine: Any, *, keys: bool = False, deadline: float = 60.0) -> Gate:
    metrics = Metrics(engine)
    app = http.create_app(engine, metrics, deadline=deadline)
    rules = Rules(
        authenticate=authenticate if keys else everybody,
        public=http.public_paths(),
        always=http.METRICS,
        hosts=allowed_hosts("127.0.0.1"),
    )
    return Gate(app, rules, engine, metrics.count_reply)


@dataclass(frozen=True)
class Live:
    """engine: the fake. url: of the server, without a slash at its end."""

    engine: WordEngine
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def running(engine: WordEngine, gate: Any = None, *, drain_timeout: float = 2.0) -> Iterator[Live]:
    """Serve `gate` (by default the client app) on a free port of loopback inside the block.

    drain_timeout: seconds that answers have to end after the block.
    """
    bound = bind("127.0.0.1", 0)
    bound.listen()  # so that a test may connect at once
    host, port = bound.getsockname()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    gate = gate or create_gate(engine)

    def main() -> None:
        asyncio.set_event_loop(loop)
        listeners = [Listener(gate, bound)]
        loop.run_until_complete(serve(engine, listeners, drain_timeout=drain_timeout, stop=stop))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=main)
    thread.start()
    try:
        yield Live(engine, host, port)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def eventually(condition: Any, seconds: float = 60.0) -> bool:
    """Whether `condition()` becomes true."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True
