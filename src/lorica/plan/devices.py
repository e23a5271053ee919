"""The devices that a run may be planned for: memory, bandwidth, operations per second.

devices.toml has a row for each card, with its source. A size ("24GiB") is a card of which only the
memory is known. "cpu" is this machine: its memory is read, and nothing of its speed is stored,
because processors differ by factors (with AVX-512 or without, two cores or sixty-four).
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lorica.errors import ConfigError, closest

GIB = 2**30
SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(gib|gb|g|mib|mb|m)", re.IGNORECASE | re.ASCII)
NUMBER = re.compile(r"[+-]?\.?\d")
"""How a text begins that is meant as a size."""
UNITS = {"g": 2**30, "gib": 2**30, "gb": 10**9, "m": 2**20, "mib": 2**20, "mb": 10**6}
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit stands: control groups of version 2, and of version 1."""


@dataclass(frozen=True)
class Device:
    """A device on which a run may be trained.

    memory_bytes: what a process can use. bandwidth: of its memory, bytes per second; None: unknown.
    flops: dtype -> dense operations per second at most; empty: unknown. threads: with which torch
    computes on a CPU. processors: of the machine.
    """

    name: str
    kind: Literal["cpu", "cuda"]
    memory_bytes: int
    source: str
    bandwidth: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    threads: int = 1
    processors: int = 1


def device_named(name: str) -> Device:
    """A card of the table, "cpu" for this machine, or a size such as "24GiB" or "24 GB".

    Raises: ConfigError if it is none of these.
    """
    key = name.strip().lower()
    if key == "cpu":
        return this_cpu()
    if key in (table := devices()):
        return table[key]
    if size := SIZE.fullmatch(key):
        memory = int(float(size[1]) * UNITS[size[2]])
        if memory > 0:
            return Device(name.strip(), "cuda", memory, "the size that was given")
    if len(key) >= 4 and (cards := [card for card in table if key in card]):
        raise ConfigError(
            f"there is no device {name!r:.60}.", fix=f"name it in full: {', '.join(cards)}"
        )
    if NUMBER.match(key):
        raise ConfigError(
            f"{name!r:.60} is no size of a memory.",
            known=", ".join(["cpu", *table]),
            fix="a number above 0 of at most 9 digits, and its unit: 24GiB, 24GB, 512MiB",
        )
    known = ["cpu", *table]
    raise ConfigError(
        f"there is no device {name!r:.60}.",
        closest=closest(key[:60], known),
        known=", ".join(known),
        fix="name one of these, or give the memory of the card: 24GiB",
    )


@cache
def devices() -> dict[str, Device]:
    """The cards of devices.toml, by name."""
    path = Path(__file__).with_name("devices.toml")
    rows: dict[str, dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: Device(
            name=name,
            kind="cuda",
            memory_bytes=int(row["memory_gib"] * GIB),
            source=row["source"],
            bandwidth=row["bandwidth"],
            flops={key: row[key] for key in ("float32", "bfloat16") if key in row},
        )
        for name, row in rows.items()
    }


def this_cpu() -> Device:
    """This machine's processor: the cores of this process, and the memory that it may use."""
    memory = _memory()
    source = "this machine" if memory else "this machine, whose memory is unknown"
    every = os.cpu_count() or 1
    return Device("cpu", "cpu", memory, source, threads=_threads(), processors=every)


def _threads() -> int:
    """Those of torch: one for each core of this process, or fewer if OMP_NUM_THREADS says so."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(threads)) if re.fullmatch("0*[1-9][0-9]{0,5}", threads) else cores


def _memory() -> int:
    """Bytes of memory of this machine, or of its container if that has less; 0 if unknown."""
    sizes = []
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in map(Path, LIMITS):
        limit = path.read_text().strip() if path.is_file() else ""
        sizes += [int(limit)] if limit.isdecimal() else []
    return min((size for size in sizes if size > 0), default=0)
