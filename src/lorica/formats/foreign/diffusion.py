"""Adapters of image models, refused by name: diffusers' folders, and kohya's single files.

diffusers' save_lora_weights writes pytorch_lora_weights.safetensors, whose keys begin with the part
of the pipeline. kohya's sd-scripts name a layer with underscores, with an alpha of its own
(networks/lora.py: LORA_PREFIX_UNET and its like).
"""

from collections.abc import Iterable
from pathlib import Path

from lorica.errors import FileError

DIFFUSERS = ("unet.", "transformer.", "transformer_2.", "text_encoder.", "text_encoder_2.")
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lycoris_")
MARKS = ("lora", ".alpha", "dora_scale", "lokr", "hada")


def refuse_diffusion(names: Iterable[str], path: Path) -> None:
    """Raises: FileError if these names of tensors are of an adapter of an image model.

    LitGPT's names begin with `transformer.` too; its blocks are `transformer.h`.
    """
    for name in names:
        if name.startswith(KOHYA):
            raise _refused(path, "kohya's", name)
        is_part = name.startswith(DIFFUSERS) and not name.startswith("transformer.h.")
        if is_part and any(mark in name for mark in MARKS):
            raise _refused(path, "diffusers'", name)


def _refused(path: Path, whose: str, name: str) -> FileError:
    return FileError(
        f"{path} is an adapter of an image model in {whose} layout, as {name} shows.",
        fix="load it with diffusers: pipeline.load_lora_weights(...)",
    )
