"""Open files inside a run, adapter, checkpoint or merged folder without following links.

Such a folder may come from someone else. A name that we read or write in it may be a link to a
file of the user, a device that never ends, or a pipe that nobody writes to. So every file is
opened here: with O_NOFOLLOW, without waiting, and only if it is a regular file. What is something
else is refused by name. The folder that the user names may itself be a link; what lies below may
not. The one exception is the hub's cache, whose snapshots are links into `models--*/blobs`.
"""

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lorica.errors import FileError, ResourceError

MAX_TEXT = 64 * 2**20
"""Bytes of a file that is read into memory as text."""
MAX_LINE = 4 * 2**20
"""Bytes of one line of a log."""
MAX_LOG = 2**30
"""Bytes of a log: a run of a million steps writes a fifth of it."""


def kind_of(path: Path) -> Literal["file", "folder"] | None:
    """What `path` is, itself and not what it links to; None if nothing is there.

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
    raise _refused(path, mode)


def is_file(path: Path) -> bool:
    """Whether a regular file is there. Raises: as `kind_of`."""
    return kind_of(path) == "file"


def is_folder(path: Path) -> bool:
    """Whether a folder is there that is no link. Raises: as `kind_of`."""
    return kind_of(path) == "folder"


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder; none if it is not there. Raises: FileError for a link."""
    if not is_folder(folder):
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def check(folder: Path, *names: str) -> None:
    """Raises: FileError if one of `names` in `folder` is there and no plain file or folder."""
    for name in names:
        kind_of(folder / name)


def check_name(name: str, source: Path) -> str:
    """A file name that `source` lists. Raises: FileError unless it is plain: no path, no `..`."""
    if not name or name in (".", "..") or set(name) & {"/", "\\", "\0"} or len(name) > 255:
        raise FileError(
            f"{source} names the file {name!r:.200}, which is no plain file name.",
            fix="copy the folder anew from a source that you trust",
        )
    return name


def open_file(path: Path, *, follow: bool = False) -> io.BufferedReader:
    """A regular file, open for reading.

    follow: `path` is the user's own word and may be a link, to a regular file.
    Raises: FileError if it is not there, or is something else; ResourceError if it may not be read.
    """
    if not follow and kind_of(path) == "folder":
        raise FileError(f"{path} is a folder, not a file.", fix="check the path")
    linked = follow or path.is_symlink()  # then `kind_of` has seen that it is a cache's
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
    """Write a file that is not there yet, and sync it."""
    with os.fdopen(_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_to_append(path: Path) -> io.BufferedRandom:
    """A file to append to, made if it is not there; not truncated.

    Raises: FileError if it is a link, or has a second name (a hard link) elsewhere.
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
    """Open without waiting for a pipe, and without a link. Raises: FileError for anything odd."""
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        raise FileError(f"{path} does not exist.", fix="check the path") from None
    except ValueError as error:
        raise FileError(f"{path!s:.200} cannot be opened: {error}.", fix="check the path") from None
    except OSError as error:
        if flags & os.O_CREAT:  # the caller says what was to be written
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
    target = Path(os.path.realpath(path))
    inside = target.parent.name == "blobs" and target.parents[1].name.startswith("models--")
    return inside and target.is_file()


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
