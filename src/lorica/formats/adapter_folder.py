"""Where the adapter of a run is: a run may be named wherever an adapter may."""

from pathlib import Path

from lorica import plain_files
from lorica.errors import FileError


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder that `path` names: itself, or the adapter/ of a run folder."""
    path = Path(path)
    if plain_files.is_file(path / "config.yaml") and plain_files.is_file(path / "events.jsonl"):
        if not plain_files.is_folder(path / "adapter"):
            raise FileError(
                f"the run {path} has not finished: it has no adapter yet.",
                fix=f"lorica train --resume {path}",
            )
        return path / "adapter"
    return path
