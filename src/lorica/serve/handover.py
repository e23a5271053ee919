"""A reply on its way from the thread that accepts it to a task that may be cancelled meanwhile."""

import threading

from lorica.serve.generation_reply import GenerationReply


class Handover:
    """`give` on the thread, `abandon` by the task: whichever is second cancels the answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reply: GenerationReply | None = None
        self._is_abandoned = False

    def give(self, reply: GenerationReply) -> GenerationReply:
        with self._lock:
            self._reply = reply
        return self._cancel_if_abandoned(reply)

    def abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
        if self._reply is not None:
            self._cancel_if_abandoned(self._reply)

    def _cancel_if_abandoned(self, reply: GenerationReply) -> GenerationReply:
        if self._is_abandoned:
            reply.cancel()
        return reply
