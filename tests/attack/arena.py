"""Run command lines on hostile input in forked children, and hold each to the contract.

The contract: an exit status that the README documents; one message on stderr and no traceback;
an end within 20 s; at most 2 GB; nothing written outside of the working directory.
"""

import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

SECONDS, BYTES = 20, 2 * 2**30
STATUSES = {0, 1, 2, 3, 4, 5, 6, 130, 143}
KINDS = {
    "ConfigError",
    "TargetError",
    "BaseError",
    "MergeError",
    "DataError",
    "ResourceError",
    "MissingError",
    "FileError",
    "TrainingError",
    "Stopped",
    "LoricaError",
}


@dataclass(frozen=True)
class Attack:
    """name: of the input. words: the command line. prepare: what is done to the copied files."""

    name: str
    words: tuple[str, ...]
    prepare: Callable[[], object]


@dataclass
class _Child:
    attack: Attack
    pid: int
    folder: Path
    began: float


class Arena:
    """A folder of good files, copied for each attack."""

    def __init__(self, good: Path, place: Path):
        """good: what each attack finds in its working directory. place: for the copies."""
        self.good, self.place = good, place
        self.outside = place / "outside"
        (self.outside / "step-00000001").mkdir(parents=True)
        (self.outside / "file").write_text("kept")
        (self.outside / "step-00000001/state.json").write_text("{}")
        self.statuses: list[int] = []
        """Exit statuses of the command lines that ended, in the order of their ends."""
        self._before = _listing(self.outside)
        _import_all()

    def violations(self, attacks: Iterable[Attack], at_once: int | None = None) -> list[str]:
        """One sentence for each attack that breaks the contract."""
        found: list[str] = []
        waiting, children = iter(attacks), dict[int, _Child]()
        count, ended = 0, False
        while children or not ended:
            while not ended and len(children) < (at_once or os.cpu_count() or 1):
                attack = next(waiting, None)
                if attack is None:
                    ended = True
                    break
                child = self._start(attack, count)
                children[child.pid], count = child, count + 1
            for pid in list(children):
                done, status, usage = os.wait4(pid, os.WNOHANG)
                late = time.monotonic() - children[pid].began > SECONDS
                if done or late:
                    child = children.pop(pid)
                    if not done:
                        os.kill(pid, signal.SIGKILL)
                        os.wait4(pid, 0)
                    found += [
                        f"{child.attack.name} ({' '.join(child.attack.words)}): {what}"
                        for what in self._judge(child, done, status, usage)
                    ]
                    shutil.rmtree(child.folder)
            time.sleep(0.005)
        if _listing(self.outside) != self._before:
            found.append("something was written outside")
        print(f"{count} inputs, {len(found)} outside of the contract", file=sys.stderr)
        return found

    def _start(self, attack: Attack, number: int) -> _Child:
        folder = self.place / f"{number}"
        shutil.copytree(self.good, folder, symlinks=True)
        began = time.monotonic()
        if pid := os.fork():
            return _Child(attack, pid, folder, began)
        code = 99
        try:
            code = _in_child(attack, folder)
        finally:
            os._exit(code)

    def _judge(
        self, child: _Child, done: int, status: int, usage: resource.struct_rusage
    ) -> Iterator[str]:
        if not done:
            yield f"it did not end within {SECONDS} s"
            return
        code = os.waitstatus_to_exitcode(status)
        self.statuses.append(code)
        error = (child.folder / ".stderr").read_text(encoding="utf-8", errors="replace")
        if log := os.environ.get("ATTACK_LOG"):  # to read every message
            with Path(log).open("a") as file:
                note = f"{time.monotonic() - child.began:.1f} s, {usage.ru_maxrss >> 10} MiB"
                file.write(f"== {child.attack.name} -> {code} ({note})\n{error[-700:]}\n")
        if code not in STATUSES:
            yield f"exit status {code}: {error[-400:]}"
        if "Traceback" in error:
            yield f"a traceback: {error[-600:]}"
        first = [line.partition(":")[0] for line in error.splitlines()]
        if code in STATUSES - {0} and sum(word in KINDS for word in first) != 1 and code != 3:
            yield f"status {code} with another number of messages than one: {error[-400:]!r}"
        if usage.ru_maxrss * 1024 > BYTES:
            yield f"it took {usage.ru_maxrss / 2**20:.1f} GB"


def _in_child(attack: Attack, folder: Path) -> int:
    """Exit status of one command line."""
    os.chdir(folder)
    for number, name in ((1, ".stdout"), (2, ".stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    attack.prepare()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + 16 * BYTES  # address space: maps and threads take far more than memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from lorica import cli

    code = cli.run(list(attack.words))
    with ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            stack.callback(stream.flush)
    return code


def _listing(folder: Path) -> list[tuple[str, bytes | None]]:
    return sorted((str(p), p.read_bytes() if p.is_file() else None) for p in folder.rglob("*"))


def _import_all() -> None:
    """Everything that a command imports, so that a fork costs no more than its work."""
    import datasets  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import lorica.cli.check
    import lorica.cli.eval
    import lorica.cli.export
    import lorica.cli.generate
    import lorica.cli.info
    import lorica.cli.merge
    import lorica.cli.train
    import lorica.data.check
    import lorica.evaluation.evaluate
    import lorica.formats.export
    import lorica.formats.merge
    import lorica.generation.generate
    import lorica.training.train  # noqa: F401

    torch.set_num_threads(1)
