"""A connection of uvicorn with limits on slow clients.

uvicorn limits the time of an idle connection only: a client could send a header byte by byte, or
not read its answer, for ever.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lorica.serve.envelope import failure_of_status
from lorica.serve.log import log

HEADER_SECONDS = 10.0
"""Seconds in which a request's header must be complete."""
STALL_SECONDS = 60.0
"""Seconds that a client may leave its receive buffer full."""
MAX_CONNECTIONS = 1000
"""Open connections of an app; further ones are closed."""


class Connection(H11Protocol):
    """Closes itself when its client is too slow."""

    _header_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_header_timer")
        self._stop("_stall_timer")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop("_header_timer")
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self._cut_stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("_stall_timer")

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets OpenAI's error object as well; in the middle of a reply, nothing."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = failure_of_status(400, msg).as_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _cut_stalled(self) -> None:
        path = repr(self.scope["path"])[1:-1][:100]
        log.warning(
            "%s: the client did not read for %d s; its connection is cut", path, STALL_SECONDS
        )
        self.transport.abort()

    def _stop(self, timer: str) -> None:
        handle: asyncio.TimerHandle | None = getattr(self, timer)
        if handle is not None:
            handle.cancel()
            setattr(self, timer, None)
