"""Faults of runtimes and converters, planted into an adapter in PEFT's layout."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Fault = Callable[[Path], None]


def in_config(**changes: object) -> Fault:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))

    return spoil


def in_tensors(change: Callable[[str, Tensor], Tensor]) -> Fault:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file({k: change(k, t).contiguous() for k, t in tensors.items()}, folder / WEIGHTS)

    return spoil


def reordered(key: str, tensor: Tensor) -> Tensor:
    """The rows of q and k in the other order of rotary halves, as in GGUF."""
    if "lora_B" not in key or not ("q_proj" in key or "k_proj" in key):
        return tensor
    return tensor.view(-1, 2, 4, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


FAULTS: dict[str, Fault] = {
    "the scale of rsLoRA is ignored": in_tensors(lambda k, t: t / 2 if "lora_B" in k else t),
    "alpha halved": in_config(lora_alpha=2),
    "the scale of another rank": in_tensors(lambda k, t: t * 2 if "q_proj.lora_B" in k else t),
    "q and k not permuted": in_tensors(reordered),
    "one layer lost": in_tensors(lambda k, t: t * 0 if "layers.1.self_attn.v_proj" in k else t),
}
