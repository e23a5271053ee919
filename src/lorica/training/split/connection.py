"""Messages between cloud and device: a JSON header and tensors, over torch.distributed (gloo)."""

import json
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lorica.errors import ConfigError, TrainingError

CLOUD, DEVICE = 0, 1
TIMEOUT = timedelta(minutes=10)
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


class Connection:
    """One end of the connection. side: CLOUD or DEVICE. peer: HOST:PORT of the cloud."""

    def __init__(self, side: int, peer: str):
        host, _, port = peer.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"peer is {peer!r}.", fix="give the cloud's address as HOST:PORT")
        self._other = DEVICE if side == CLOUD else CLOUD
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://{host}:{port}",
                rank=side,
                world_size=2,
                timeout=TIMEOUT,
            )
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"no connection over {peer}: {_first_line(error)}.",
                fix="start the cloud and the device with the same --peer",
            ) from None

    def send(self, kind: str, note: Any = None, **tensors: Tensor) -> None:
        """Raises: TrainingError if the other side is gone."""
        raw = {k: t.detach().cpu().contiguous() for k, t in tensors.items()}
        shapes = {k: [str(t.dtype).removeprefix("torch."), *t.shape] for k, t in raw.items()}
        header = torch.frombuffer(
            bytearray(json.dumps([kind, note, shapes]).encode()), dtype=torch.uint8
        )
        try:
            dist.send(torch.tensor([len(header)]), self._other)
            dist.send(header, self._other)
            for tensor in raw.values():
                if tensor.numel():
                    dist.send(tensor.view(-1).view(torch.uint8), self._other)
        except RuntimeError as error:
            raise _gone(error) from None

    def receive(self) -> tuple[str, Any, dict[str, Tensor]]:
        """(kind, note, tensors). Raises: TrainingError if the other side is gone."""
        try:
            size = torch.zeros(1, dtype=torch.int64)
            dist.recv(size, self._other)
            header = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(header, self._other)
            kind, note, shapes = json.loads(header.numpy().tobytes())
            tensors = {}
            for key, (dtype, *shape) in shapes.items():
                tensor = torch.empty(shape, dtype=DTYPES[dtype])
                if tensor.numel():
                    dist.recv(tensor.view(-1).view(torch.uint8), self._other)
                tensors[key] = tensor
        except RuntimeError as error:
            raise _gone(error) from None
        return kind, note, tensors

    def close(self) -> None:
        dist.destroy_process_group()


def _gone(error: Exception) -> TrainingError:
    return TrainingError(
        f"the other side of the split is gone: {_first_line(error)}.",
        fix="start the cloud again, and resume on the device with lorica train --resume",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
