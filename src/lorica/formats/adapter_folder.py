"""The names of the files of an adapter folder, and which folders are adapters.

adapter_model.safetensors   the trained tensors
adapter_config.json         PEFT's settings, where PEFT knows the method
manifest.json               ours: method, targets, base fingerprint, digests, versions
README.md                   a model card
"""

from pathlib import Path

from lorica import plain_files, strict_json
from lorica.errors import FileError

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
CONFIG, MANIFEST, CARD = "adapter_config.json", "manifest.json", "README.md"
SHARDS = "adapter_model.safetensors.index.json"
MLX = "adapters.safetensors"
LITGPT, LITGPT_PICKLED = "lit_model.lora.safetensors", "lit_model.pth.lora"
TUNE = r"adapter_\d+\.safetensors"
"""Weights of other tools: the index of shards; mlx-lm; LitGPT, converted; torchtune, converted."""
ADAPTERS = (MANIFEST, CONFIG, LITGPT, LITGPT_PICKLED)
"""A folder with one of these files is an adapter, even if it cannot be read."""


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
    """Whether `path` is an adapter folder, of ours or of another tool."""
    return any(plain_files.is_file(path / name) for name in ADAPTERS)


def can_be_replaced(path: Path) -> bool:
    """Whether all files of `path` are of an adapter, so that a new adapter may replace it."""
    names = {p.name for p in path.iterdir()} if path.is_dir() else set()
    if not is_adapter(path) or names <= {WEIGHTS, CONFIG, MANIFEST, CARD}:
        return is_adapter(path)
    files = strict_json.read(path / MANIFEST).get("files") if MANIFEST in names else None
    return isinstance(files, dict) and names <= {WEIGHTS, CONFIG, MANIFEST, CARD, *files}
