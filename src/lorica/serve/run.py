"""Run the apps in one process until a signal: first drain, then end."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from lorica.errors import ResourceError
from lorica.progress import announce
from lorica.serve.connection import Connection
from lorica.serve.exchange import Engine
from lorica.serve.request_limits import MAX_HEADER_BYTES

CLOSE_SECONDS = 5
"""Seconds that replies have to be sent after the last answer ended."""
END_SECONDS = 5
"""Seconds that the rest of the process has to end, then. After them it is ended, whatever hangs."""
HUNG = 70
"""Status of a process that was ended so."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Listener:
    """An app and the bound socket that it listens on."""

    app: Callable[..., Awaitable[Any]]
    socket: socket.socket


class _Server(uvicorn.Server):
    """uvicorn without handlers of signals: `serve` has them."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


async def serve(
    engine: Engine,
    listeners: Sequence[Listener],
    *,
    drain_timeout: float,
    stop: asyncio.Event,
) -> int:
    """Serve until `stop` is set, then drain. Returns: answers that were cut off by the timeout.

    While it drains, the sockets stay open, so that clients learn that the server stops.
    """
    servers = [_Server(_config(listener.app)) for listener in listeners]
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener.socket]))
        for server, listener in zip(servers, listeners, strict=True)
    ]
    await stop.wait()
    with ThreadPoolExecutor(1, thread_name_prefix="lorica-drain") as own:
        cut = await asyncio.get_running_loop().run_in_executor(own, engine.drain, drain_timeout)
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)
    return cut


def run(
    engine: Engine,
    listeners: Sequence[Listener],
    *,
    drain_timeout: float,
    on_hangup: Callable[[], None],
) -> int:
    """Serve until SIGTERM or Ctrl-C; a second one ends the process at once.

    on_hangup: what SIGHUP does. Returns: as `serve`.
    """

    async def main() -> int:
        stop = asyncio.Event()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number, stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
        return await serve(engine, listeners, drain_timeout=drain_timeout, stop=stop)

    def on_signal(number: int, stop: asyncio.Event) -> None:
        name = signal.Signals(number).name
        if stop.is_set():
            announce(f"lorica serve: a second {name}: ended at once")
            os._exit(128 + number)
        announce(
            f"lorica serve: {name}: no new requests; answers have {drain_timeout:g} s to finish"
        )
        end = threading.Timer(drain_timeout + CLOSE_SECONDS + END_SECONDS, end_now, [name])
        end.daemon = True
        end.start()
        stop.set()

    def end_now(name: str) -> None:
        print(f"lorica serve: something hangs after {name}: ended", file=sys.stderr, flush=True)
        os._exit(HUNG)

    return asyncio.run(main())


def bind(host: str, port: int, *, option: str = "--port") -> socket.socket:
    """A socket bound to an address, or to what a name means. Raises: ResourceError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {host}:{port}: {error.strerror or error}.", fix="check --host"
        ) from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ResourceError(
            f"cannot listen on {host}:{port}: {error.strerror or error}.",
            fix=f"choose another {option}, or end the process that uses this one",
        ) from None
    return bound


def bind_unix(path: Path) -> socket.socket:
    """A unix socket that only this user may connect to. A dead one in its place is replaced.

    Raises: ResourceError.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise ResourceError(
            f"cannot listen on {path}: {error.strerror or error}.", fix="name another path"
        ) from None
    finally:
        os.umask(umask)
    return bound


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _config(app: Callable[..., Awaitable[Any]]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=None,
    )
