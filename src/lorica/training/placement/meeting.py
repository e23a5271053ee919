"""How the processes that torchrun has started find one another, also when it starts them again.

torchrun keeps one store over all attempts. In torch 2.13 the keys of an attempt are not apart from
those of the next: processes that start again read the addresses of dead ones, and cannot connect.
So the processes of an attempt first agree on a name for it, and meet under that name.
"""

import os
import time
import uuid

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[reportPrivateImportUsage]

from lorica.errors import ResourceError

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
SECONDS = 1800
"""For which a process waits for the others; torchrun ends it sooner where one of them fails."""
PAUSE = 0.02


def meet() -> None:
    """Form the process group of an attempt of torchrun. Elsewhere accelerate does, later."""
    environment = os.environ
    size = int(environment.get("WORLD_SIZE", "1"))
    if environment.get(AGENT_STORE) != "True" or size == 1 or torch.distributed.is_initialized():
        return
    rank = int(environment["RANK"])
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False)
    attempt = PrefixStore(f"lorica/{agreed_name(store, rank, size)}", store)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type != "cpu":
        torch.accelerator.set_device_index(int(environment["LOCAL_RANK"]))
    backend = torch.distributed.get_default_backend_for_device(device)
    torch.distributed.init_process_group(backend, store=attempt, rank=rank, world_size=size)


def agreed_name(store: TCPStore, rank: int, size: int, *, seconds: float = SECONDS) -> str:
    """A name that all living processes of an attempt know, and none of an earlier attempt.

    Each says hello with a number of its own. The first gives those that it read a name, and begins
    anew when another hello takes the place of one, which was from an earlier attempt then.
    Raises: ResourceError if they do not all come in time.
    """
    deadline = time.monotonic() + seconds
    others = range(1, size)
    own = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", own)
    name = ""
    hellos: list[str] | None = None
    while time.monotonic() < deadline:
        if rank:
            name = _read(store, f"name/{rank}/{own}")
            if name:
                store.set(f"ready/{name}/{rank}", "1")
        else:
            now = [_read(store, f"hello/{other}") for other in others]
            if all(now) and now != hellos:
                hellos, name = now, uuid.uuid4().hex
                for other, hello in zip(others, now, strict=True):
                    store.set(f"name/{other}/{hello}", name)
            if name and store.check([f"ready/{name}/{other}" for other in others]):
                store.set(f"go/{name}", "1")
        if name and store.check([f"go/{name}"]):
            return name
        time.sleep(PAUSE)
    raise ResourceError(
        f"the {size} processes of the run did not meet within {seconds:.0f} s.",
        fix="look at the messages of the others, and whether they reach the first one's address",
    )


def _read(store: TCPStore, key: str) -> str:
    """The value of a key; empty: there is none yet."""
    return store.get(key).decode() if store.check([key]) else ""
