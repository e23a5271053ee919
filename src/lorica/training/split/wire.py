"""Messages between cloud and device: a JSON head and tensors, over torch.distributed (gloo)."""

import json
from collections import Counter
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lorica.errors import ConfigError, TrainingError

CLOUD, DEVICE = 0, 1
PATIENCE = timedelta(minutes=10)
DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.bool,
        torch.uint8,
    )
}


class Wire:
    """The connection of one side.

    sent: bytes of tensors that went out from here, by the kind of message.
    received: those that came in.
    """

    def __init__(self, side: int, peer: str):
        host, _, port = peer.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"peer is {peer!r}.", fix="write it as HOST:PORT, the cloud's")
        self._other = DEVICE if side == CLOUD else CLOUD
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://{host}:{port}",
                rank=side,
                world_size=2,
                timeout=PATIENCE,
            )
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"no connection over {peer}: {_first(error)}.",
                fix="start the cloud and the device with the same --peer",
            ) from None

    def send(self, kind: str, note: Any = None, **tensors: Tensor) -> None:
        """Raises: TrainingError if the other side is gone."""
        raw = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
        shapes = {k: [str(t.dtype).removeprefix("torch."), *t.shape] for k, t in raw.items()}
        head = torch.frombuffer(
            bytearray(json.dumps([kind, note, shapes]).encode()), dtype=torch.uint8
        )
        try:
            dist.send(torch.tensor([len(head)]), self._other)
            dist.send(head, self._other)
            for tensor in raw.values():
                self.sent[kind] += tensor.nbytes
                if tensor.numel():
                    dist.send(tensor.view(-1).view(torch.uint8), self._other)
        except RuntimeError as error:
            raise _gone(error) from None

    def receive(self) -> tuple[str, Any, dict[str, Tensor]]:
        """(kind, note, tensors). Raises: TrainingError if the other side is gone."""
        try:
            size = torch.zeros(1, dtype=torch.int64)
            dist.recv(size, self._other)
            head = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(head, self._other)
            kind, note, shapes = json.loads(head.numpy().tobytes())
            tensors = {}
            for key, (dtype, *shape) in shapes.items():
                tensor = torch.empty(shape, dtype=DTYPES[dtype])
                if tensor.numel():
                    dist.recv(tensor.view(-1).view(torch.uint8), self._other)
                self.received[kind] += tensor.nbytes
                tensors[key] = tensor
        except RuntimeError as error:
            raise _gone(error) from None
        return kind, note, tensors

    def close(self) -> None:
        dist.destroy_process_group()


def _gone(error: Exception) -> TrainingError:
    return TrainingError(
        f"the other side of the split is gone: {_first(error)}.",
        fix="start the cloud again, and go on with lorica train --resume on the device",
    )


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
