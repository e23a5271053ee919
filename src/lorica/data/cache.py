"""Tokenised rows kept between commands, in $XDG_CACHE_HOME/lorica/rows (~/.cache/lorica/rows).

An entry is a folder of flat arrays (see `store`) under a key that everything enters which the
rows follow from: the file's bytes, the settings, the tokenizer, the seed of the split, and this
package's own code. Only its owner may read it. An entry appears whole or not at all; its
digests are checked when it is read, and a damaged one is made anew, with a notice. Entries that
were not used for longest give way beyond 8 GB. Deleting the folder is always safe.
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
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from lorica import progress
from lorica.data import token_store
from lorica.data.config import DataConfig
from lorica.data.token_store import StoreWriter, TokenStore

MOST = 8 << 30  # bytes of all entries
FROM = 2 << 20  # bytes of a file whose rows are kept; smaller ones are read again at once
STALE = 86_400.0  # seconds after which what a killed process left is removed
STAGING = ".staging-"
# Settings that change which rows are taken, and not how they are tokenised.
LATER = {"path", "validation", "max_length", "overlong"}


def folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "lorica" / "rows"


def key(config: DataConfig, digest: str, tokenizer: Any, seed: int) -> str | None:
    """The name of the rows' entry; None where the tokenizer cannot be told from others."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    tokenizer("a")  # takes back what an earlier call set: padding, truncation
    template = json.dumps(tokenizer.chat_template, default=str)
    settings = config.model_dump(mode="json", exclude=LATER)
    files = {}  # that settings name, as templates
    for name, value in settings.items():
        if isinstance(value, str) and len(value) < 1_000 and Path(value).is_file():
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


@cache
def _code() -> str:
    """The digest of what reads and tokenises rows, and the versions of what it calls."""
    from importlib.metadata import version

    sums = hashlib.sha256(
        b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
    )
    versions = [version(name) for name in ("tokenizers", "transformers", "jinja2", "numpy")]
    return sums.hexdigest() + " ".join(versions)


class Entry:
    """The place of one file's rows in the cache; locked, so that one process makes it."""

    def __init__(self, path: Path):
        self.path = path
        self.notices: list[str] = []
        self._staging: Path | None = None

    def read(self) -> TokenStore | None:
        """The rows that are there; None: none, or damaged ones."""
        if not self.path.is_dir():
            return None
        try:
            found = token_store.open_store(self.path)
            os.utime(self.path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.notices.append(f"the cached rows in {self.path} are damaged ({error}); made anew")
            shutil.rmtree(self.path, ignore_errors=True)
            return None
        return found

    def begin(self, writer: StoreWriter) -> None:
        """Let a writer write to files from now on. Raises: OSError."""
        self._staging = self.path.with_name(f"{STAGING}{self.path.name}-{uuid4().hex[:8]}")
        self._staging.mkdir(mode=0o700)
        for name, column in writer.columns.items():
            column.spill(self._staging / name)

    def commit(self, writer: StoreWriter, meta: dict[str, Any]) -> TokenStore:
        """What was written, as an entry. Raises: OSError."""
        assert self._staging is not None
        token_store.finish_store(self._staging, writer, meta)
        self._staging.rename(self.path)
        self._staging = None
        _evict(self.path)
        return token_store.open_store(self.path)

    def discard(self) -> None:
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None


@contextmanager
def entry(name: str) -> Iterator[Entry]:
    """The entry `name`, while no other process makes it. Raises: OSError if there can be none."""
    root = folder()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = root.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise PermissionError(0, "it is not private; its mode must be 0700")
    handle = os.open(root / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.announce("waiting for another process that tokenises the same rows")
            fcntl.flock(handle, fcntl.LOCK_EX)
        found = Entry(root / name)
        try:
            yield found
        finally:
            found.discard()
    finally:
        os.close(handle)


def _evict(keep: Path) -> None:
    """Remove the entries that were used longest ago, down to MOST bytes, and what is left over."""
    ages: list[tuple[float, int, Path]] = []
    for path in keep.parent.iterdir():
        age = path.stat().st_mtime
        if path.name.startswith(STAGING) or path.suffix == ".lock":
            if time.time() - age > STALE:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        elif path.is_dir():
            ages.append((age, sum(file.stat().st_size for file in path.iterdir()), path))
    total = sum(size for _, size, _ in ages)
    for _, size, path in sorted(ages):
        if total > MOST and path != keep:
            shutil.rmtree(path, ignore_errors=True)
            total -= size
