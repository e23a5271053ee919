"""Adapters keep their files, byte for byte: folders of this release are read by others, and theirs
by this one."""

import hashlib
import json

import pytest
import torch

import lorica
from lorica.core.adapter import Method
from lorica.core.state import adapter_state
from tests.laws.bases import Stack

FILES = {
    "lora": "99bebb7c0155af2e",
    "dora": "b9d27229ff34bf58",
    "ia3": "b2fcf88e3ae711be",
    "full": "09586a537ed445d9",
}
"""sha256 of tensors and PEFT's config, of adapters with the tensors of `saved`."""
MANIFEST = [
    "format",
    "method",
    "targets",
    "seed",
    "base",
    "dtype",
    "labels",
    "prompt_format",
    "files",
    "versions",
]


def saved(method, folder):
    """An adapter whose numbers are the same on every processor: eighths, which no kernel rounds."""
    targets = {"target_modules": ["up"]} if method != "ia3" else {}
    model = lorica.adapt(Stack(), Method.named(method)(), **targets)
    for tensor in adapter_state(model).values():
        with torch.no_grad():
            tensor.copy_((torch.arange(tensor.numel()) % 9 - 4).view(tensor.shape) / 8)
    return lorica.save(model, folder, base_path="owner/base")


@pytest.mark.parametrize("method, wanted", FILES.items())
def test_the_bytes_of_the_tensors_and_of_pefts_config(method, wanted, tmp_path):
    folder, sha = saved(method, tmp_path / "adapter"), hashlib.sha256()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        if (folder / name).exists():
            sha.update((folder / name).read_bytes())
    assert sha.hexdigest()[:16] == wanted


def test_the_keys_of_the_manifest(tmp_path):
    manifest = json.loads((saved("lora", tmp_path / "adapter") / "manifest.json").read_text())
    assert list(manifest) == MANIFEST
    assert list(manifest["base"])[:4] == ["path", "architecture", "parameters", "shapes"]
    assert manifest["files"].keys() == {"adapter_config.json", "adapter_model.safetensors"}
