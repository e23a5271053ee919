"""Open whatever a path names: a run, an adapter on its base, or a base alone."""

from pathlib import Path

from lorica import plain_files
from lorica.base.bundled import NAME
from lorica.base.describe import own_classes
from lorica.base.load import LoadedModel
from lorica.base.load import load as load_base
from lorica.errors import ConfigError, FileError
from lorica.formats.adapter_folder import PICKLED, WEIGHTS, adapter_folder, is_adapter
from lorica.formats.foreign.refusals import refuse_known
from lorica.formats.foreign.weights import weights_files
from lorica.formats.open_adapter import open_adapter


def open_model(
    path: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_base: str | None = None,
    quantisation: str | None = None,
    offload: str | None = None,
) -> tuple[LoadedModel, bool]:
    """(the model, whether it carries an adapter).

    path: a run folder, an adapter folder, or a base (folder, hub id, "bundled").
    base: another location of an adapter's base. dtype: None: as in training, and float32 for a
        base alone. quantisation: None: as in training, and as it is for a base alone. offload:
        "disk" or "cpu": where the weights of the base wait; see lorica.base.offload.

    Raises: ConfigError, BaseError, FileError.
    """
    folder = adapter_folder(path)
    if is_adapter(folder) or any(plain_files.is_file(folder / name) for name in (WEIGHTS, PICKLED)):
        loaded = open_adapter(
            folder,
            base=base,
            dtype=dtype,
            allow_base=allow_base,
            quantisation=quantisation,
            offload=offload,
        )
        if loaded.labels is not None and len(loaded.labels) < 2:
            raise FileError(
                f"the head of {folder} has one output, as a regression has: it gives no classes.",
                fix="lorica.load it on a model that you have loaded",
            )
        return loaded, True
    if folder != Path(path):  # a run, whose adapter lost its files
        weights_files(folder)
    if not folder.exists() and str(path) != NAME and Path(folder.parts[0]).is_dir():
        weights_files(folder)  # "runs/demoo" is a misspelt folder, not a name on the hub
    if folder.is_file() or not plain_files.is_file(folder / "config.json"):
        refuse_known(folder)
    if base is not None:
        raise ConfigError(
            f"{path} is a base, and base={base!r} names another.",
            fix="leave base out, or name an adapter",
        )
    labels = own_classes(str(path), needed=True)
    loaded = load_base(
        str(path),
        dtype=dtype or "float32",
        labels=labels,
        quantisation=quantisation,
        offload=offload,
    )
    return loaded, False
