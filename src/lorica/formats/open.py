"""Open an adapter or a run as one ready model: base, tokenizer, adapter attached."""

from pathlib import Path

from lorica.base.load import Base
from lorica.base.load import load as load_base
from lorica.errors import BaseError, FileError
from lorica.formats import commit
from lorica.formats.folder import CONFIG, MANIFEST, find, load


def adapter_folder(path: str | Path) -> Path:
    """The adapter folder that `path` names: itself, or the adapter/ of a run folder."""
    path = Path(path)
    if (path / "config.yaml").is_file() and (path / "events.jsonl").is_file():
        if not (path / "adapter").is_dir():
            raise FileError(f"the run {path} has not finished: it has no adapter yet.",
                            fix=f"lorica train --resume {path}")  # fmt: skip
        return path / "adapter"
    return path


def open_adapter(
    path: str | Path, *, base: str | None = None, dtype: str = "float32",
    allow_base: str | None = None,
) -> Base:  # fmt: skip
    """The base that the adapter was trained on, with the adapter active.

    base: another place to load the base from; None: where the adapter says it was.

    Raises: FileError, BaseError.
    """
    folder = adapter_folder(path)
    find(folder)
    labels = None
    if (folder / MANIFEST).is_file():
        manifest = commit.read_json(folder / MANIFEST)
        base = base or manifest.get("base", {}).get("path")
        labels = manifest.get("labels")
    else:
        base = base or commit.read_json(folder / CONFIG).get("base_model_name_or_path")
    if not base:
        raise BaseError(f"{folder} does not say what base it was trained on.", fix="pass --base")
    loaded = load_base(base, dtype=dtype, labels=labels)
    loaded.lines += load(loaded.model, folder, tokenizer=loaded.tokenizer, allow_base=allow_base)
    return loaded
