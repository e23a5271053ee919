"""Any exception as one clear message and one exit status.

    0 done    1 a run or a merge failed    2 usage    3 data    4 resource    5 missing package
    6 damaged file    70 a bug in lorica    130 Ctrl-C    141 closed pipe    143 SIGTERM

Lorica's own errors are printed as they are. Known errors of others (disk, memory, a missing
package) become errors of lorica. Every other error is a bug.
"""

import errno
import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from cyclopts import CycloptsError, UnknownCommandError

from lorica.cli.process_errors import is_printed, peer_lost, process_of_several
from lorica.errors import (
    ConfigError,
    LoricaError,
    MissingError,
    ResourceError,
    closest,
    memory_full,
)

OPTIONAL = {"datasets": "data", "pyarrow": "data", "tensorboard": "tensorboard", "wandb": "wandb"}
OPTIONAL |= dict.fromkeys(("fastapi", "starlette", "uvicorn", "h11", "prometheus_client"), "serve")
"""Package -> the extra of lorica that installs it."""


def print_error(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print an error to stderr (with --json to stdout as well). Returns the exit status."""
    match error:
        case BrokenPipeError():  # the reader of our output has closed it: `| head`
            return 141
        case KeyboardInterrupt():
            code = 130
        case _:
            code = None
    if debug:
        traceback.print_exception(error)
    lost = peer_lost(error)
    ours = lost or as_lorica_error(error)
    if (process := process_of_several()) is not None:
        if is_printed(str(ours or error), is_consequence=lost is not None):
            return code or (ours.exit_code if ours else 70)
        print(f"process {process[0]} of {process[1]}:", file=sys.stderr)
    if ours is None:
        bug = _describe_bug(error)
        print(bug, file=sys.stderr)
        plain = {"type": type(error).__name__, "what": bug, "facts": {}, "fix": None}
    else:
        print(f"{type(ours).__name__}: {ours}", file=sys.stderr)
        name = type(ours).__name__
        plain = {"type": name, "what": ours.what, "facts": ours.facts, "fix": ours.fix}
    code = code or (ours.exit_code if ours else 70)
    if as_json:
        print(json.dumps({"error": plain | {"exit_code": code}}, default=str, ensure_ascii=False))
    return code


def check_text(words: Iterable[str]) -> None:
    """Raises: ConfigError if a word is not UTF-8: it cannot be written to a recipe or a log."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{word!r} is not UTF-8 text.", fix="rename the file") from None


def usage_error(error: CycloptsError, words: Sequence[str], commands: Iterable[str]) -> ConfigError:
    """An error of cyclopts as one of ours."""
    match error:
        case UnknownCommandError():  # its own text would import every command
            name = next(iter(error.unused_tokens or words))
            return ConfigError(
                f"{name} is not a command.",
                closest=closest(name, commands),
                known=", ".join(commands),
            )
    command = " ".join(["lorica", *(w for w in words[:1] if not w.startswith("-"))])
    return ConfigError(str(error).strip(), fix=f"{command} --help")


def as_lorica_error(error: BaseException) -> LoricaError | None:
    """The error as one of ours; None if it is not a known one."""
    match error:
        case LoricaError():
            return error
        case KeyboardInterrupt():
            return LoricaError("stopped by Ctrl-C.")
        case _ if memory_full(error):
            return ResourceError(
                "the memory is full.",
                why=(str(error).splitlines() or ["-"])[0],
                fix="lower micro_batch_size (and raise gradient_accumulation_steps) or "
                "data.max_length, or set gradient_checkpointing: true",
            )
        case ModuleNotFoundError(name=str(package)) if package in OPTIONAL:
            return MissingError(
                f"the package {package} is not installed.",
                fix=f"pip install 'lorica[{OPTIONAL[package]}]'",
            )
        case OSError(errno=int(number)) if number in _DISK:
            where = f" {error.filename}" if error.filename else ""
            return ResourceError(f"the disk refused{where}: {error.strerror}.", fix=_DISK[number])
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


def _describe_bug(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    first = (str(error).splitlines() or [""])[0]
    return f"this is a bug in lorica, run with --debug: {type(error).__name__}: {first}{at}"


def flush() -> None:
    """Flush stdout. A reader that has closed it must not raise at exit."""
    if sys.stdout is None:  # closed before the start
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
