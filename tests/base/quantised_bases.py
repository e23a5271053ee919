"""Copies of a base with other weights, and the logits of a base."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorica.base.quantise import KINDS
from tests.laws.bases import IDS

UP = "model.layers.1.mlp.up_proj"
each_kind = pytest.mark.parametrize("kind", KINDS)


def copy_base(base: Path, folder: Path) -> Path:
    """A copy of a base in `folder`, for tests that change it."""
    return Path(shutil.copytree(base, folder / "base"))


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Call `change` with the tensors of the checkpoint in `folder`, and save what it leaves."""
    file = folder / "model.safetensors"
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()
