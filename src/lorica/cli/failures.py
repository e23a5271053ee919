"""Any exception as one clear message and one exit status.

    0 done    1 a run or a merge failed    2 usage    3 data    4 resource    5 missing package
    6 damaged file    70 a bug in lorica    130 Ctrl-C    141 closed pipe    143 SIGTERM

What lorica raises itself is already clear. Of what others raise, the known cases (disk,
memory, a package that is not there) are told in our words, and the rest is a bug.
"""

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from cyclopts import CycloptsError, UnknownCommandError

from lorica.errors import (
    ConfigError,
    LoricaError,
    MissingError,
    ResourceError,
    closest,
    memory_full,
)

OPTIONAL = {"datasets": "data", "pyarrow": "data", "tensorboard": "tensorboard", "wandb": "wandb"}
"""Package -> the extra of lorica that brings it."""


def tell(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print an error to stderr (with --json to stdout as well). Returns the exit status."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has left: `| head`
        return 141
    if debug:
        traceback.print_exception(error)
    ours = known(error)
    code = 130 if isinstance(error, KeyboardInterrupt) else ours.exit_code if ours else 70
    kind = type(ours or error).__name__
    what, fix, facts = (ours.what, ours.fix, ours.facts) if ours else (_bug(error), None, {})
    print(f"{kind}: {ours}" if ours else what, file=sys.stderr)
    if as_json:
        told = {"type": kind, "what": what, "facts": facts, "fix": fix, "exit_code": code}
        print(json.dumps({"error": told}, default=str, ensure_ascii=False))
    return code


def check_text(words: Iterable[str]) -> None:
    """Raises: ConfigError if a word is not UTF-8: it could be written into no recipe or log."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{word!r} is not UTF-8 text.", fix="rename the file") from None


def usage(error: CycloptsError, words: Sequence[str], commands: Iterable[str]) -> ConfigError:
    """What cyclopts says of the words, as one of our errors."""
    if isinstance(error, UnknownCommandError):  # its own text would import every command
        name = next(iter(error.unused_tokens or words))
        return ConfigError(
            f"{name} is not a command.", closest=closest(name, commands), known=", ".join(commands)
        )
    command = " ".join(["lorica", *(w for w in words[:1] if not w.startswith("-"))])
    return ConfigError(str(error).strip(), fix=f"{command} --help")


def known(error: BaseException) -> LoricaError | None:
    """The error in our words; None if nothing is known of it."""
    if isinstance(error, LoricaError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return LoricaError("stopped by Ctrl-C.")
    if memory_full(error):
        return ResourceError(
            "the memory is full.",
            why=(str(error).splitlines() or ["-"])[0],
            fix="lower micro_batch_size (and raise gradient_accumulation_steps) or "
            "data.max_length, or set gradient_checkpointing: true",
        )
    if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL:
        extra = OPTIONAL[error.name]
        return MissingError(
            f"the package {error.name} is not installed.", fix=f"pip install 'lorica[{extra}]'"
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f" {error.filename}" if error.filename else ""
        return ResourceError(f"the disk refused{where}: {error.strerror}.", fix=_DISK[error.errno])
    return None


_DISK = {
    errno.ENOSPC: "free some space, or choose another output folder",
    errno.EDQUOT: "free some space, or choose another output folder",
    errno.EACCES: "choose a folder that you may use",
    errno.EPERM: "choose a folder that you may use",
    errno.EROFS: "choose a folder that you may write to",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _bug(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    first = (str(error).splitlines() or [""])[0]
    return f"this is a bug in lorica, run with --debug: {type(error).__name__}: {first}{at}"


def flush() -> None:
    """Write out what was printed; a reader that has left must not raise at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
