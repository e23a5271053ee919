"""lorica serve: adapters over one base, behind OpenAI's API."""

import ipaddress
import logging
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter, validators

from lorica.cli.options import Dtype, Quantisation, Texts
from lorica.cli.served_adapters import (
    check_not_the_base,
    load_adapters,
    parse_adapters,
    print_notices,
)
from lorica.errors import ConfigError, counted, listed

if TYPE_CHECKING:
    from lorica.serve.auth import Access
    from lorica.serve.engine import ServingEngine
    from lorica.serve.exchange import ModelCard
    from lorica.serve.run import Listener

app = App(name="serve")

GIB = 2**30
MAX_LENGTH = 2048
Port = Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))]
Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Seconds = Annotated[float, Parameter(validator=validators.Number(gte=0))]


@app.default
def serve(
    base: str,
    /,
    *,
    adapter: Texts = None,
    adapters: Path | None = None,
    conditions: Texts = None,
    slots: Positive = 16,
    max_length: Positive | None = None,
    memory: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None,
    max_queued: Positive = 256,
    host: str = "127.0.0.1",
    port: Port = 8000,
    keys: Path | None = None,
    allowed_hosts: Texts = None,
    admin_port: Port | None = None,
    admin_socket: Path | None = None,
    timeout: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 600.0,
    drain_timeout: Seconds = 30.0,
    dtype: Dtype = None,
    quantisation: Quantisation = None,
) -> None:
    """Serve a base and adapters over it, by OpenAI's API and on a page at /.

    An adapter is a model of its own name; adapters of all methods share the base and are computed
    in one batch. Ctrl-C or SIGTERM finishes the answers that run, then ends; a second one ends at
    once.

    Parameters
    ----------
    base
        Folder of the base, hub id, or bundled.
    adapter
        NAME=FOLDER of a run or an adapter; may be given several times.
    adapters
        Folder of runs or adapters, each served under its folder's name. The operator can load
        from here while the server runs.
    conditions
        NAME=CONDITION,CONDITION: those that may be asked of an adapter that is made from one,
        as the model NAME:CONDITION. By default all of its training.
    slots
        Answers that are written at the same time; more wait in a queue. Two slots besides are
        kept for customers that have no answer running.
    max_length
        Tokens of prompt and answer together: by default 2048, or the base's context if that is
        smaller.
    memory
        GiB for adapters. Those that were not used longest leave, and are read again when they
        are asked for. By default no limit.
    max_queued
        Requests that may wait; further ones are refused. One tenant may have at most half of
        them, and at most 64.
    host
        Address to listen on. Beyond this machine (0.0.0.0) keys are required.
    port
        Port to listen on; 0: any free one.
    keys
        File of API keys, their tenants and quotas. Without it this machine alone has access.
        `lorica key NAME` makes a key. SIGHUP reads the file again.
    allowed_hosts
        Name under which clients reach the server (chat.example.com), if it is neither an address
        nor localhost; may be given several times.
    admin_port
        Port of the operator's API, on this machine only: load, replace, unload, pin adapters.
        With keys it needs one with admin: true. By default it is off.
    admin_socket
        Unix socket of the operator's API, instead of a port.
    timeout
        Seconds that an answer may take, its wait included.
    drain_timeout
        Seconds that running answers have to finish when the server is stopped.
    """
    served = parse_adapters(adapter or (), conditions or (), adapters)
    if admin_port is not None and admin_socket is not None:
        raise ConfigError("--admin_port and --admin_socket are both given.", fix="choose one")
    from lorica.serve import run  # before the base is loaded: is the extra installed?
    from lorica.serve.build import EngineSettings, open_engine
    from lorica.serve.keys_reload import KeysReload
    from lorica.serve.names import base_name_of

    check_not_the_base(served, base_name_of(base))
    with ExitStack() as stack:
        client = stack.enter_context(run.bind(host, port))
        if keys is None:
            check_is_local(host, client.getsockname()[0])
        admin = _bind_admin(admin_port, admin_socket, stack)
        access = _read_access(base, keys)
        settings = EngineSettings(
            slots=slots,
            max_length=max_length or MAX_LENGTH,
            memory_bytes=None if memory is None else int(memory * GIB),
            max_queued=max_queued,
            quotas=access.quotas,
            dtype=dtype,
            quantisation=quantisation,
        )
        print(f"loading the base {base}", file=sys.stderr, flush=True)
        engine = open_engine(base, settings)
        _print_context(engine, max_length)
        stack.enter_context(_logging_to_stderr())
        engine.start()
        stack.callback(engine.close)
        load_adapters(engine.store, served)
        print_notices(str(keys), not_served(access.adapters(), engine.cards()))
        listeners = _listeners(
            engine, access, client, admin, adapters, allowed_hosts or (), timeout
        )
        _print_summary(engine, slots, client.getsockname(), admin)
        reload = KeysReload(base, keys, access, engine)
        cut = run.run(engine, listeners, drain_timeout=drain_timeout, on_hangup=reload)
    ended = f"; {counted(cut, 'answer')} had no time to finish" if cut else ""
    print(f"lorica serve: stopped{ended}", file=sys.stderr)


def _print_context(engine: "ServingEngine", asked: int | None) -> None:
    """A notice if the base's context is shorter than --max_length."""
    if asked is not None and engine.max_length < asked:
        context = f"the base's context is {engine.max_length:,} tokens, and is used"
        print_notices(f"--max_length {asked}", [context])


def check_is_local(host: str, address: str) -> None:
    """Raises: ConfigError if other machines reach an address: without keys everybody may ask."""
    if not ipaddress.ip_address(address).is_loopback:
        raise ConfigError(
            f"--host {host} is reached by other machines, and there are no keys.",
            fix="make a key: lorica key NAME --adapter '*' > keys.yaml, and pass --keys keys.yaml; "
            "or leave --host out",
        )


def _bind_admin(port: int | None, path: Path | None, stack: ExitStack) -> socket | None:
    """The operator's socket, which `stack` closes and removes."""
    from lorica.serve import run

    if port is not None:
        return stack.enter_context(run.bind("127.0.0.1", port, option="--admin_port"))
    if path is None:
        return None
    bound = stack.enter_context(run.bind_unix(path))
    stack.callback(path.unlink, missing_ok=True)
    return bound


def _read_access(base: str, keys: Path | None) -> "Access":
    from lorica.serve.auth import Access
    from lorica.serve.keys_file import read_keys
    from lorica.serve.names import base_name_of

    base_name = base_name_of(base)
    if keys is None:
        return Access.local(base_name)
    access, notices = read_keys(keys, base_name=base_name)
    print_notices(str(keys), notices)
    return access


def not_served(adapters: Mapping[str, Collection[str]], cards: "Iterable[ModelCard]") -> list[str]:
    """Notices on adapters that tenants may use and nobody can. adapters: by tenant."""
    names = {card.name for card in cards if card.state != "failed"}
    return [
        f"{tenant} may use {listed(missing)}, which is not served; it can be loaded later"
        for tenant, allowed in adapters.items()
        if (missing := sorted(set(allowed) - names))
    ]


def _listeners(
    engine: "ServingEngine",
    access: "Access",
    client: socket,
    admin: socket | None,
    root: Path | None,
    allowed_hosts: Sequence[str],
    timeout: float,
) -> "list[Listener]":
    from lorica.serve.apps import admin_gate, client_gate
    from lorica.serve.gate import allowed_hosts as names_of
    from lorica.serve.metrics import Metrics
    from lorica.serve.run import Listener

    metrics = Metrics(engine)
    address = client.getsockname()[0]
    gate = client_gate(
        engine,
        metrics,
        access,
        hosts=names_of(address, allowed_hosts),
        any_address=not ipaddress.ip_address(address).is_loopback,
        deadline=timeout,
    )
    listeners = [Listener(gate, client)]
    if admin is not None:
        listeners.append(Listener(admin_gate(engine, engine.store, metrics, access, root), admin))
    for listener in listeners:  # the addresses are printed next: who reads them may connect
        listener.socket.listen()
    return listeners


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """The server's log and uvicorn's warnings, a line each, inside the block."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    levels = {"lorica.serve": logging.INFO, "uvicorn.error": logging.WARNING}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for name in levels:
            logger = logging.getLogger(name)
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)


def _print_summary(
    engine: "ServingEngine", slots: int, address: tuple, admin: socket | None
) -> None:
    cards = [card for card in engine.cards() if card.parent is not None]
    served = [card.name for card in cards if card.state != "failed"]
    failed = [card.name for card in cards if card.state == "failed"]
    names = f" ({listed(served, 8)})" if served else ""
    missing = f"; not served: {listed(failed, 8)}" if failed else ""
    bound = str(address[0])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bound, bound)
    host = f"[{host}]" if ":" in host else host
    room = f"{counted(slots, 'slot')} of {engine.max_length:,} tokens"
    what = f"{engine.base_name} with {counted(len(served), 'adapter')}{names}"
    print(f"{what}{missing}; {room}", flush=True)
    print(f"page  http://{host}:{address[1]}/", flush=True)
    print(f"API   http://{host}:{address[1]}/v1", flush=True)
    if admin is not None:
        name = admin.getsockname()
        where = name if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
        print(f"admin {where}", flush=True)
