"""Open an adapter or a run as one ready model: base, tokenizer, adapter attached."""

from pathlib import Path

from lorica.base.load import Base
from lorica.base.load import load as load_base
from lorica.base.quantise import KINDS
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
    allow_base: str | None = None, quantisation: str | None = None,
    double_quantisation: bool | None = None,
) -> Base:  # fmt: skip
    """The base that the adapter was trained on, with the adapter active.

    base: another place to load the base from; None: where the adapter says it was.
    quantisation: "nf4", "fp4" or "int8", or "none": the float base; None: as in training.
    double_quantisation: None: as in training, or with it.

    Raises: FileError, BaseError, ConfigError; MissingError without bitsandbytes.
    """
    folder = adapter_folder(path)
    find(folder)
    labels, trained = None, {}
    if (folder / MANIFEST).is_file():
        manifest = commit.read_json(folder / MANIFEST)
        trained = manifest.get("base", {})
        base = base or trained.get("path")
        labels = manifest.get("labels")
    else:
        base = base or commit.read_json(folder / CONFIG).get("base_model_name_or_path")
    if not base:
        raise BaseError(f"{folder} does not say what base it was trained on.", fix="pass --base")
    then = trained.get("quantisation")
    kind = (then if then in KINDS else None) if quantisation is None else quantisation
    if double_quantisation is None:
        double_quantisation = bool(trained.get("double_quantisation")) if kind == then else True
    loaded = load_base(
        base, dtype=dtype, labels=labels, quantisation=kind,
        double_quantisation=double_quantisation,
    )  # fmt: skip
    loaded.lines += load(loaded.model, folder, tokenizer=loaded.tokenizer, allow_base=allow_base)
    return loaded
