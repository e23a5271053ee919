"""Digests of the files of a base: whether it is still the one that a study began with."""

import hashlib
from pathlib import Path

from lorica import plain_files
from lorica.base.describe import locate
from lorica.base.untrusted_files import SUFFIXES
from lorica.progress import Progress

PIECE = 2**24
"""Bytes that are read at once."""


def file_digests(base: str) -> dict[str, str]:
    """SHA-256 of each file that a base is read from, by its name; of one of the hub, its commit.

    Every byte is read: a changed weight is a changed base. Raises: as `locate`.
    """
    folder = Path(locate(base))
    if not folder.is_dir():
        folder = _snapshot(base)
    if folder.parent.name == "snapshots":  # the commit names every byte, also what is not here yet
        return {"commit": folder.name}
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    size, digests = sum(path.stat().st_size for path in files), {}
    with Progress(f"reading {base}", size, "B") as progress:
        for path in files:
            digest = hashlib.sha256()
            with plain_files.open_file(path, follow=True) as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
                    progress.advance(len(piece))
            digests[path.name] = digest.hexdigest()
    return digests


def _snapshot(repo: str) -> Path:
    """The folder of the newest copy of a model of the hub; its config is downloaded if need be."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, "config.json")).parent
