"""Errors: one base class, one layout of messages, and an exit status for each class.

LoricaError        1  a run failed
  ConfigError      2  a setting is unknown, of the wrong type, or out of range
  TargetError      2  a target selected no layer, or the wrong kind of layer
  BaseError        2  the base is not the one that the adapter was trained on
  MergeError       1  an adapter has no dense equivalent, or merging lost too much
  DataError        3  the rows cannot be read, or cannot be used for training
  ResourceError    4  disk, memory or permission
  MissingError     5  an optional package is not installed
  FileError        6  a file is damaged, or does not fit the model
  TrainingError    1  a check stopped the run: nothing is learned, or a value is not finite
  Stopped        130  a signal ended the run (143 for SIGTERM), after a checkpoint was saved
"""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class LoricaError(Exception):
    """What happened, the facts, and the fix, each on its own line."""

    exit_code = 1

    def __init__(self, what: str, *, fix: str | None = None, **facts: object):
        self.what, self.fix, self.facts = what, fix, facts
        rows = {**facts, **({"fix": fix} if fix else {})}
        width = max(map(len, rows), default=0)
        lines = (f"  {key:<{width}}  {value}" for key, value in rows.items())
        super().__init__("\n".join([what, *lines]))

    @property
    def summary(self) -> str:
        """What happened and the facts, in one line without the fix."""
        facts = "; ".join(f"{key}: {value}" for key, value in self.facts.items())
        return f"{self.what} ({facts})" if facts else self.what

    def __reduce__(self):
        return _rebuild, (type(self), self.what, self.fix, self.facts)


def _rebuild(kind: type[LoricaError], what: str, fix: str | None, facts: dict) -> LoricaError:
    return kind(what, fix=fix, **facts)


class ConfigError(LoricaError, ValueError):
    exit_code = 2


class TargetError(LoricaError, ValueError):
    exit_code = 2


class BaseError(LoricaError, ValueError):
    exit_code = 2


class MergeError(LoricaError, ValueError):
    exit_code = 1


class DataError(LoricaError, ValueError):
    exit_code = 3


class ResourceError(LoricaError, OSError):
    exit_code = 4


class MissingError(LoricaError, ImportError):
    exit_code = 5


class FileError(LoricaError, ValueError):
    exit_code = 6


class TrainingError(LoricaError, RuntimeError):
    exit_code = 1


class Stopped(LoricaError):
    """A signal ended the run; `signal` is its number."""

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 128 + int(str(self.facts.get("signal", 0)))


def closest(word: str, known: Iterable[str]) -> str:
    """Up to three names of `known` that are similar to `word`, for a message."""
    return ", ".join(get_close_matches(word, list(known), n=3, cutoff=0.4)) or "(nothing similar)"


def listed(items: Iterable[object], most: int = 4) -> str:
    """The first `most` items, and how many more there are."""
    words = [str(i) for i in items]
    more = f" ... and {len(words) - most} more" if len(words) > most else ""
    return (", ".join(words[:most]) + more) or "none"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun, for a message: "1 row", "1,234 rows". plural: if not noun + "s"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of a write under `path` into a ResourceError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, LoricaError):
            raise
        fix = {
            errno.ENOSPC: "free some space, or choose another output folder",
            errno.EACCES: "choose a folder that you may write to",
            errno.EROFS: "choose a folder that you may write to",
            errno.EPERM: "choose a folder that you may write to",
        }.get(error.errno or 0, "check the path and the disk")
        reason = error.strerror or str(error)
        raise ResourceError(f"cannot write {path}: {reason}.", fix=fix) from error


def memory_full(error: BaseException) -> bool:
    """Whether `error` means that memory, of the machine or of its GPU, is exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return any(words in text for words in _NO_MEMORY)


_NO_MEMORY = (
    "can't allocate memory",
    "Storage size calculation overflowed",
    "not enough memory",
    "cannot allocate memory",
    "Cannot allocate memory",
)
"""Messages of torch, numpy and the system when an allocation fails."""
