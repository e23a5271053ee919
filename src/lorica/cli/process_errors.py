"""Several processes of one run, as torchrun starts them: an error of all of them is printed once.

An empty file for each error that was printed says so to the other processes of this machine. Its
name holds the launcher, the attempt and a digest of the error. Where launchers cannot be told
apart, outside of Linux, every process prints.
"""

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from lorica.errors import TrainingError

KEPT_SECONDS = 24 * 60 * 60
"""How long the file of an error stays; a later error of any run removes it."""
PEER_LOST = ("gloo/transport", "Connection closed by peer", "DistBackendError", "NCCL error")
"""Parts of what torch raises in a process whose peer has gone."""


def process_of_several() -> tuple[int, int] | None:
    """(number of this process, their count); None: it is alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), count) if count > 1 else None


def peer_lost(error: BaseException) -> TrainingError | None:
    """The error of a process that cannot go on, because another one has ended; None: another."""
    text = f"{type(error).__name__}: {error}"
    if process_of_several() is None or not any(words in text for words in PEER_LOST):
        return None
    return TrainingError(
        "another process of this run has ended, and the others cannot go on without it.",
        fix="its own message, or torchrun's below, says why; the run goes on from its newest "
        "checkpoint with torchrun --max-restarts 1, or with lorica train --resume",
    )


def is_printed(text: str, *, is_consequence: bool) -> bool:
    """Whether another process has printed this error; if not, this one will, and says so.

    is_consequence: of an error elsewhere: printed only if nothing else was.
    """
    if (launcher := _launcher()) is None:
        return False
    folder = Path(tempfile.gettempdir())
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    stem = f"lorica-{os.getuid()}-{launcher}-{os.environ.get('MASTER_PORT', '')}-{attempt}"
    if is_consequence:
        time.sleep(0.5)  # the process that failed may still be printing
        if any(folder.glob(f"{stem}-*")):
            return True
    _remove_old(folder)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        os.close(os.open(folder / f"{stem}-{digest}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return True
    except OSError:  # a full disk: rather twice than not at all
        return False
    return False


def _remove_old(folder: Path) -> None:
    for file in folder.glob(f"lorica-{os.getuid()}-*"):
        with suppress(OSError):  # another process was first, or it is not ours
            if time.time() - file.stat().st_mtime > KEPT_SECONDS:
                file.unlink()


def _launcher() -> str | None:
    """The process that started this one, as no other ever is named; None: it is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        columns = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot}-{os.getppid()}-{columns[19]}"  # its start, in ticks since the boot
