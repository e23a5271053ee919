"""What the tests of exports share: moved adapters, logits, and a written config."""

import json
from pathlib import Path
from typing import Any

import torch

import lorica
from lorica import Lora
from tests.laws.bases import IDS, move, small_llama


def adapted(make=small_llama, kind=Lora, **settings: Any) -> torch.nn.Module:
    words = {"r": 4} | {
        k: settings.pop(k) for k in ("alpha", "use_rslora", "lora_bias") if k in settings
    }
    return move(lorica.adapt(make(), kind(**words), **settings))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "adapter_config.json").read_text())
