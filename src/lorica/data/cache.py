"""The cache of tokenised rows, in $XDG_CACHE_HOME/lorica/rows (~/.cache/lorica/rows).

An entry is a folder of flat arrays (see `token_store`). Its key is a digest of everything that
decides the rows: the bytes of the file, the settings, the tokenizer, the seed of the split, and
the code of this package. Only its owner may read an entry. It appears by a rename, complete or
not at all. Its digests are checked when it is read; a damaged entry is rebuilt, with a notice.
Above 8 GiB in total, the least recently used entries are deleted. Deleting the folder is safe.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from lorica import progress
from lorica.data import token_store
from lorica.data.config import DataConfig
from lorica.data.text_encoder import backend_of
from lorica.data.token_store import StoreWriter, TokenStore

MAX_BYTES = 8 << 30  # of all entries
MIN_FILE_BYTES = 2 << 20  # a smaller file is tokenised again, which is as fast
STALE_SECONDS = 86_400.0  # age at which the files of a killed process are removed
STAGING = ".staging-"
# Settings that decide which rows are used, but not how they are tokenised.
NOT_IN_KEY = {"path", "validation", "max_length", "overlong", "workers", "mixture", "streaming"}


def folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "lorica" / "rows"


def cache_key(config: DataConfig, digest: str, tokenizer: Any, seed: int) -> str | None:
    """The name of the rows' entry; None for a tokenizer without a backend, which has no digest."""
    backend = backend_of(tokenizer)
    if backend is None:
        return None
    tokenizer("a")  # resets the padding and truncation that an earlier call set in the backend
    template = json.dumps(tokenizer.chat_template, default=str)
    settings = config.model_dump(mode="json", exclude=NOT_IN_KEY)
    files = {}  # templates and the like that settings name
    for name, value in settings.items():
        if type(value) is str and len(value) < 1_000 and Path(value).is_file():
            files[name] = hashlib.sha256(Path(value).read_bytes()).hexdigest()
    dated = "strftime_now" in template + json.dumps([settings, files], default=str)
    parts = [
        digest,
        Path(config.path).name,
        settings,
        files,
        seed,
        _code(),
        type(tokenizer).__name__,
        backend.to_str(),
        {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        template,
        str(date.today()) if dated or files else "",
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:40]


@lru_cache(maxsize=1)
def _code() -> str:
    """The digest of this package's code, and the versions of the libraries that it calls."""
    from importlib.metadata import version

    sums = hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
    )
    versions = [version(name) for name in ("tokenizers", "transformers", "jinja2", "numpy")]
    return sums.hexdigest() + " ".join(versions)


class Entry:
    """The cache entry of one file's rows. It is locked: only one process writes it."""

    def __init__(self, path: Path):
        self.path = path
        self.notices: list[str] = []
        self._staging: Path | None = None

    def read(self) -> TokenStore | None:
        """The cached rows; None if there are none, or they are damaged."""
        if not self.path.is_dir():
            return None
        try:
            store = token_store.open_store(self.path)
            os.utime(self.path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.notices.append(f"the cached rows in {self.path} are damaged ({error}); rebuilt")
            shutil.rmtree(self.path, ignore_errors=True)
            return None
        return store

    def begin(self, writer: StoreWriter) -> None:
        """Make a writer write to files of this entry. Raises: OSError."""
        self._staging = self.path.with_name(f"{STAGING}{self.path.name}-{uuid4().hex[:8]}")
        self._staging.mkdir(mode=0o700)
        for name, column in writer.columns.items():
            column.spill(self._staging / name)

    def bound(self, writer: StoreWriter) -> None:
        """The rows are in files already, and take no memory."""

    def commit(self, writer: StoreWriter, meta: dict[str, Any]) -> TokenStore:
        """Publish the written files as the entry, and open it. Raises: OSError."""
        assert self._staging is not None
        token_store.finish_store(self._staging, writer, meta)
        self._staging.rename(self.path)
        self._staging = None
        _evict(self.path)
        return token_store.open_store(self.path)

    def discard(self) -> None:
        """Delete the files of an entry that was not committed."""
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None


@contextmanager
def locked_entry(name: str) -> Iterator[Entry]:
    """Lock the entry `name`, and wait for a process that writes it. Raises: OSError."""
    root = folder()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = root.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(0, "it is not private; its mode must be 0700")
    handle = os.open(root / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.announce("waiting for another process that tokenises the same rows")
            fcntl.flock(handle, fcntl.LOCK_EX)
        locked = Entry(root / name)
        try:
            yield locked
        finally:
            locked.discard()
    finally:
        os.close(handle)


def _evict(keep: Path) -> None:
    """Delete stale files, and the least recently used entries above MAX_BYTES."""
    ages: list[tuple[float, int, Path]] = []
    for path in keep.parent.iterdir():
        age = path.stat().st_mtime
        if path.name.startswith(STAGING) or path.suffix == ".lock":
            if time.time() - age > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        elif path.is_dir():
            ages.append((age, sum(file.stat().st_size for file in path.iterdir()), path))
    total = sum(size for _, size, _ in ages)
    for _, size, path in sorted(ages):
        if total > MAX_BYTES and path != keep:
            shutil.rmtree(path, ignore_errors=True)
            total -= size
