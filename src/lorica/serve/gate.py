"""What stands before both apps: who may ask, from where, how much, and what is logged of it.

Every request passes here before any route is looked up. A path is closed unless it is listed as
public, so that a route that somebody adds later is closed as well.
"""

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lorica.errors import LoricaError
from lorica.serve.auth import Tenant
from lorica.serve.envelope import BUG, Failure, failure_of, failure_of_status
from lorica.serve.exchange import Engine
from lorica.serve.limits import Limits
from lorica.serve.log import log, write_bug
from lorica.serve.refusals import Unavailable
from lorica.serve.request_limits import refusal_of_body, refusal_of_size

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL = ("localhost", "127.0.0.1", "::1")
MAX_BODY_BYTES = Limits().body
BODY_SECONDS = 30.0
"""Seconds in which a body must be complete: a client that sends it slowly holds a connection."""
RETRY_AFTER = 5.0
"""Seconds until a client should ask a server again that is starting or stopping."""
HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""Of every reply, unless it has its own: a browser must not take an answer for a page."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """authenticate: the Authorization header to the tenant that asks; raises Unauthorized.

    public: paths that need no key. always: paths that answer while the server starts or stops.
    hosts: names that the Host header may have; IP addresses are always allowed if any_address,
    because a name that is rebound to this machine is never one.
    """

    authenticate: Callable[[str | None], Tenant]
    public: Collection[str]
    always: Collection[str]
    hosts: Collection[str] = LOCAL
    any_address: bool = False
    for_operator: bool = False


class Gate:
    """An ASGI app around another one. on_reply: is called with the status of each reply; 499: the
    client went away before it."""

    def __init__(self, app: App, rules: Rules, engine: Engine, on_reply: Callable[[int], None]):
        self.app, self.rules, self._engine, self._on_reply = app, rules, engine, on_reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        reply = _Reply(scope, send)
        try:
            await self._pass(scope, receive, reply)
        except _Gone:
            pass
        except LoricaError as error:
            await reply.fail(failure_of(error, for_operator=self.rules.for_operator), error)
        except Exception as error:
            await reply.fail(None, error)
        finally:
            self._on_reply(reply.status or 499)
            reply.write_log()
        return None

    async def _pass(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        """Check the request in an order that tells a stranger nothing, then call the app."""
        path, headers = scope["path"], _headers(scope)
        problem = refusal_of_size(scope) or self._wrong_place(headers)
        if problem is None and path in self.rules.public:
            problem = refusal_of_body(scope["method"], headers)
        if problem:
            return await reply.fail(problem)
        if path not in self.rules.public:
            scope["caller"] = self.rules.authenticate(headers.get(b"authorization"))
        if path not in self.rules.public and path not in self.rules.always:
            self._check_ready()
        body = await _read_body(headers, receive)
        if isinstance(body, Failure):
            return await reply.fail(body)
        return await self.app(scope, _replay(body, receive), reply.send)

    def _wrong_place(self, headers: dict[bytes, str]) -> Failure | None:
        """Refuse a page of another site in the user's browser, and a name bound to this machine."""
        host = headers.get(b"host", "")
        name = _host_name(host)
        if not (name in self.rules.hosts or (self.rules.any_address and _is_address(name))):
            return Failure(
                403,
                f"this server does not answer to the name {name!r:.100}. "
                "Fix: start it with --allowed_hosts NAME.",
                "host_not_allowed",
            )
        origin = headers.get(b"origin")
        if origin is not None and _location(origin) != host.lower():
            return Failure(
                403,
                f"requests of pages of {origin!r:.100} are refused; only this server's own page "
                "may ask from a browser.",
                "origin_not_allowed",
            )
        return None

    def _check_ready(self) -> None:
        if self._engine.is_draining:
            raise Unavailable("the server is stopping.", retry_after=RETRY_AFTER)
        if not self._engine.is_ready:
            raise Unavailable("the server is not ready yet.", retry_after=RETRY_AFTER)


class _Gone(Exception):
    """The client closed the connection before its request was complete."""


class _Reply:
    """The reply to one request: adds headers, and remembers what the log says."""

    def __init__(self, scope: Scope, send: Send):
        self.scope, self._send = scope, send
        self.started, self.status, self.is_complete = time.perf_counter(), 0, False
        self.id = secrets.token_hex(8)
        scope["request_id"] = self.id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = list(message.get("headers", ()))
            names = {name.lower() for name, _ in own}
            more = (header for header in HEADERS if header[0] not in names)
            message["headers"] = [*own, (b"x-request-id", self.id.encode()), *more]
        elif not message.get("more_body", False):
            self.is_complete = True
        await self._send(message)

    async def fail(self, failure: Failure | None, error: Exception | None = None) -> None:
        """Send an error. Without a failure it is a bug: the client learns nothing, the log all."""
        if failure is None and error is not None:
            write_bug(self.id, error)
        if self.is_complete:
            return
        if self.status:  # in the middle of a reply: cut it, so that it cannot look complete
            raise ConnectionError("the reply failed") from None
        failure = failure or BUG
        self.scope["log_notes"] = failure.log_notes()
        body = failure.as_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in failure.headers),
        ]
        if failure.status in (401, 403, 405, 408, 413, 431):
            headers.append((b"connection", b"close"))  # what was not read is not read
        if failure.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        start = {"type": "http.response.start", "status": failure.status, "headers": headers}
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})

    def write_log(self) -> None:
        """One line without query, prompt or key; none for a probe of health that is well."""
        scope = self.scope
        path = repr(scope["path"])[1:-1][:100]
        if path.startswith("/health/") and self.status == 200:
            return
        seconds = f"{time.perf_counter() - self.started:.3f}s"
        words = [scope["method"], path, str(self.status or 499), seconds]
        if "caller" in scope:
            words.append(f"tenant={scope['caller'].name}")
        log.info(" ".join([*words, *scope.get("log_notes", ()), f"id={self.id}"]))


def allowed_hosts(bound: str, more: Iterable[str] = ()) -> set[str]:
    """Names that the Host header may have: the bound one, the local ones, and those of the user."""
    return {*LOCAL, bound.lower(), *(name.lower() for name in more)}


async def _read_body(headers: dict[bytes, str], receive: Receive) -> bytes | Failure:
    """The whole body. A failure if it is too large, or takes too long."""
    too_large = failure_of_status(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes.")
    length = headers.get(b"content-length", "")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        return too_large
    if not length and b"transfer-encoding" not in headers:
        return b""
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > MAX_BODY_BYTES:
                    return too_large
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        return failure_of_status(408, f"the body was not complete in {BODY_SECONDS:.0f} seconds.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then what comes: that the client went away."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        if pending:
            return pending.pop()
        while (message := await receive())["type"] != "http.disconnect":
            pass
        return message

    return replayed


def _headers(scope: Scope) -> dict[bytes, str]:
    """Headers by lower-case name; of one that is given twice, both, which no check accepts."""
    headers: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        headers[name] = f"{headers[name]},{text}" if name in headers else text
    return headers


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; "" if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _location(origin: str) -> str:
    """HOST:PORT of an Origin header; "" for `null` and for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
