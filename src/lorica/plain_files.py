"""Open files inside a run, adapter, checkpoint or merged folder without following links.

Such a folder may come from someone else. A file in it may be a link to a file of the user, an
endless device, or a pipe without a writer. So every file is opened here: with O_NOFOLLOW, without
blocking, and only if it is a regular file. Anything else is a FileError. The folder that the user
names may be a link; files and folders below it may not. The one exception is the hub's cache,
whose snapshots are links into `models--*/blobs`.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lorica.errors import FileError, ResourceError

STAGING = ".staging-"
"""What the name of a folder begins with until it is complete."""
MAX_TEXT = 64 * 2**20
"""Bytes of a file that is read into memory as text."""
MAX_LINE = 4 * 2**20
"""Bytes of one line of a log."""
MAX_LOG = 2**30
"""Bytes of a log: a run of a million steps writes a fifth of it."""


_being_written: set[Path] = set()
"""The staging folders of this process."""


@contextmanager
def being_written(staging: Path) -> Iterator[None]:
    """Inside the block, this process may read a staging folder that it writes."""
    _being_written.add(staging)
    try:
        yield
    finally:
        _being_written.discard(staging)


def is_unfinished(folder: Path) -> bool:
    """Whether a folder was left behind by a process that was killed, or another one writes it."""
    return folder.name.startswith(STAGING) and folder not in _being_written


def kind_of(path: Path) -> Literal["file", "folder"] | None:
    """The kind of `path`, without following links; None if it does not exist.

    Raises: FileError for a link, a pipe, a socket or a device.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise FileError(f"{path!s:.200} cannot be read: {error}.", fix="check the path") from None
    if stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and _is_cached(path)):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISLNK(mode) and _is_in_cache(path):
        raise FileError(
            f"{path} is a link into the cache of the hub, and its target is missing.",
            fix="download it again",
        )
    raise _refused(path, mode)


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file. Raises: as `kind_of`."""
    return kind_of(path) == "file"


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder and not a link. Raises: as `kind_of`."""
    return kind_of(path) == "folder"


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder; empty if it does not exist. Raises: FileError for a link."""
    if not is_folder(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def check(folder: Path, *names: str) -> None:
    """Raises: FileError if one of `names` in `folder` is neither missing, a file nor a folder."""
    for name in names:
        kind_of(folder / name)


def check_name(name: str, source: Path) -> str:
    """Return a file name that `source` lists. Raises: FileError if it is a path, or `..`."""
    if not name or name in (".", "..") or set(name) & {"/", "\\", "\0"} or len(name) > 255:
        raise FileError(
            f"{source} names the file {name!r:.200}, which is no plain file name.",
            fix="copy the folder anew from a source that you trust",
        )
    return name


def open_file(path: Path, *, follow: bool = False) -> io.BufferedReader:
    """Open a regular file for reading.

    follow: the user gave this path, so it may be a link to a regular file.
    Raises: FileError if it does not exist or is not a regular file; ResourceError if it cannot be
        read.
    """
    if not follow and kind_of(path) == "folder":
        raise FileError(f"{path} is a folder, not a file.", fix="check the path")
    linked = follow or path.is_symlink()  # `kind_of` accepts links of the hub's cache only
    return os.fdopen(_descriptor(path, os.O_RDONLY, follow=linked), "rb")


def read_bytes(path: Path, most: int = MAX_TEXT, *, follow: bool = False) -> bytes:
    """A whole file of at most `most` bytes. Raises: as `open_file`; FileError if it is larger."""
    with open_file(path, follow=follow) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise FileError(f"{path} is larger than {most:,} bytes.", fix="copy the file anew")
    return data


def read_text(path: Path, most: int = MAX_TEXT, *, follow: bool = False) -> str:
    """A whole small file as UTF-8. Raises: as `read_bytes`; UnicodeDecodeError."""
    return read_bytes(path, most, follow=follow).decode("utf-8")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a log; of a line above MAX_LINE bytes, its first bytes.

    Raises: as `open_file`; FileError if the log is larger than MAX_LOG.
    """
    check_log(path)
    with open_file(path) as file:
        while line := file.readline(MAX_LINE):
            yield line.decode("utf-8", errors="replace")


def check_log(path: Path) -> None:
    """Raises: as `open_file`; FileError if the log is larger than MAX_LOG."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > MAX_LOG:
        raise FileError(
            f"{path} has {size:,} bytes; a log has at most {MAX_LOG:,}.",
            fix=f"move it away: mv {path} {path}.old",
        )


def create(path: Path, data: bytes) -> None:
    """Write a new file, and sync it. Raises: OSError if it exists."""
    with os.fdopen(_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_new(path: Path) -> io.FileIO:
    """Open a new file to write, unbuffered. Raises: OSError if it exists."""
    return io.FileIO(_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def open_to_append(path: Path) -> io.BufferedRandom:
    """Open a file to append to, without truncation; create it if it does not exist.

    Raises: FileError if it is a link, or has a second hard link.
    """
    kind_of(path)
    descriptor = _descriptor(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise FileError(
            f"{path} has a second name elsewhere (a hard link), and is written to.",
            fix=f"give it a copy of its own: cp {path} copy && mv copy {path}",
        )
    return os.fdopen(descriptor, "ab+")


def _descriptor(path: Path, flags: int, *, follow: bool = False) -> int:
    """Open without blocking on a pipe. Raises: FileError if it is not a regular file, or a link."""
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        raise FileError(f"{path} does not exist.", fix="check the path") from None
    except ValueError as error:
        raise FileError(f"{path!s:.200} cannot be opened: {error}.", fix="check the path") from None
    except OSError as error:
        if flags & os.O_CREAT:  # the caller reports which write failed
            raise
        raise ResourceError(
            f"{path!s:.200} cannot be read: {error.strerror}.",
            fix="check the path, and the permissions of the file",
        ) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _refused(path, mode)
    return descriptor


def _is_cached(path: Path) -> bool:
    """Whether a link leads into the blobs of a cache of the hub, to a regular file."""
    return _is_in_cache(path) and os.path.isfile(path)


def _is_in_cache(path: Path) -> bool:
    """Whether a link leads into the blobs of a cache of the hub."""
    target = Path(os.path.realpath(path))
    return target.parent.name == "blobs" and target.parents[1].name.startswith("models--")


def _refused(path: Path, mode: int) -> FileError:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    return FileError(
        f"{path} is {kinds.get(stat.S_IFMT(mode), 'special')}, not a regular file or folder.",
        fix="put the file or folder itself in its place, if you trust where it comes from",
    )
