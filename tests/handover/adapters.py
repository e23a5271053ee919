"""Adapters that have moved, saved on the small base."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import lorica
from lorica.core.adapter import Method
from lorica.data.prompt_format import PromptFormat
from tests import small_base
from tests.laws.bases import SIZES, move

TOKENIZER: Any = small_base.tokenizer()


def saved(folder: Path, base: Path, name: str = "lora", seed: int = 1, **settings: Any) -> Path:
    """An adapter folder of method `name`. settings: of the method, and of its targets."""
    kind = Method.named(name)
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    own = {key: settings.pop(key) for key in list(settings) if key in names}
    model = small_base.model()
    lorica.adapt(model, kind(**own), **settings)
    move(model, seed, SIZES.get(name, 0.05))
    return Path(
        lorica.save(
            model,
            folder,
            tokenizer=TOKENIZER,
            base_path=str(base),
            prompt_format=prompt_format(base),
        )
    )


def prompt_format(base: Path) -> PromptFormat:
    """As rows were written: by the chat template of the base, if it has one."""
    template = base / "chat_template.jinja"
    if template.is_file():
        return PromptFormat(kind="chat", template=template.read_text(), eos="</s>")
    return PromptFormat(kind="prompt", bos="<s>", eos="</s>")


def logits(folder: Path) -> torch.Tensor:
    """Of the adapter in a folder, on a fresh base."""
    model = small_base.model()
    lorica.load(model, folder, tokenizer=TOKENIZER)
    return logits_of(model)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 60).unsqueeze(0)).logits
