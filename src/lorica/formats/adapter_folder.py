"""The files of an adapter folder, and which folders are adapters.

adapter_model.safetensors   the trained tensors
adapter_config.json         PEFT's settings, where PEFT knows the method
manifest.json               ours: method, targets, base fingerprint, digests, versions
README.md                   a model card
"""

from pathlib import Path

from lorica import plain_files
from lorica.errors import FileError, listed
from lorica.formats import commit

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
CONFIG, MANIFEST, CARD = "adapter_config.json", "manifest.json", "README.md"


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


def is_adapter(path: Path) -> bool:
    """Whether `path` is an adapter folder, of ours or of PEFT's."""
    return any(plain_files.is_file(path / name) for name in (MANIFEST, CONFIG))


def can_be_replaced(path: Path) -> bool:
    """Whether all files of `path` are of an adapter, so that a new adapter may replace it."""
    names = {p.name for p in path.iterdir()} if path.is_dir() else set()
    if not is_adapter(path) or names <= {WEIGHTS, CONFIG, MANIFEST, CARD}:
        return is_adapter(path)
    files = commit.read_json(path / MANIFEST).get("files") if MANIFEST in names else None
    return isinstance(files, dict) and names <= {WEIGHTS, CONFIG, MANIFEST, CARD, *files}


def weights_file(folder: Path) -> Path:
    """The tensors of an adapter folder. Raises: FileError that says what the folder holds."""
    if plain_files.is_file(folder / WEIGHTS) and is_adapter(folder):
        return folder / WEIGHTS
    if (folder / PICKLED).is_file():
        convert = (
            'python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
            f"'{folder / PICKLED}', weights_only=True), '{folder / WEIGHTS}')\""
        )
        raise FileError(
            f"{folder / PICKLED} is a pickle, which can run code when it is read.",
            fix=f"convert it where that is safe: {convert}",
        )
    inside = [p.parent.name for p in folder.glob(f"*/{WEIGHTS}")] if folder.is_dir() else []
    raise FileError(
        f"{folder} is not an adapter folder." if folder.exists() else f"{folder} does not exist.",
        needed=f"{WEIGHTS} and {MANIFEST} or {CONFIG}",
        found=listed(sorted(p.name for p in folder.iterdir()), 8) if folder.is_dir() else "nothing",
        **({"adapters_inside": ", ".join(inside)} if inside else {}),
        fix="name the folder that holds these files",
    )
