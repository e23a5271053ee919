"""An export read by transformers, and by PEFT where it is a LoRA, as `replay` asks it.

Neither goes through lorica's own reader: what they compute of the files is what others will.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lorica import plain_files
from lorica.base.describe import locate
from lorica.errors import FileError, MissingError
from lorica.formats.adapter_file import read
from lorica.formats.adapter_folder import CONFIG, is_adapter
from lorica.formats.golden import Golden, GoldenRow
from lorica.handover.replay import Answer, Opening

TEMPLATE = "chat_template.jinja"


class LocalModel:
    """model: of transformers; for a LoRA inside a PeftModel. peft: that it is."""

    def __init__(self, model: Any, tokenizer: Any, *, peft: bool):
        self._model, self._tokenizer, self._peft = model, tokenizer, peft

    @torch.no_grad()
    def logprob_after(self, ids: Sequence[int], *, adapted: bool) -> float | None:
        if not adapted and not self._peft:
            return None
        without: AbstractContextManager[Any] = (
            nullcontext() if adapted else self._model.disable_adapter()
        )
        with without:
            logits = self._model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
        return float(logits[0, -1].float().log_softmax(-1).max())

    @torch.no_grad()
    def answer(self, ids: Sequence[int], max_tokens: int) -> Answer:
        row = torch.tensor([list(ids)])
        written = self._model.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
        )
        new = written[0, len(ids) :]
        text = self._tokenizer.decode(
            new, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Answer(text, len(new) < max_tokens)

    def opening(self, row: GoldenRow) -> Opening | None:
        if row.messages is not None:
            encoded = self._tokenizer.apply_chat_template(
                list(row.messages), add_generation_prompt=True, tokenize=True, return_dict=True
            )
            ids = encoded["input_ids"]
        elif row.prompt_text is not None:
            ids = self._tokenizer(row.prompt_text)["input_ids"]
        else:
            return None
        return Opening(len(ids), self.logprob_after(ids, adapted=True))


def open_local(folder: Path, golden: Golden, base: str | None) -> LocalModel:
    """Load an export. base: another place of the base of a LoRA.

    Raises: FileError if it cannot be read; MissingError without PEFT.
    """
    if is_adapter(folder):
        return _open_lora(folder, base or (golden.header.base if golden.header else None))
    if plain_files.is_file(folder / "config.json"):
        return LocalModel(_load(str(folder)), _tokenizer(str(folder), folder), peft=False)
    files = [name for name in plain_files.names_in(folder) if name.endswith(".gguf")]
    if files:
        raise FileError(
            f"{folder} holds {', '.join(files)}, which transformers and PEFT do not read.",
            fix="start llama.cpp's server with it, and pass --endpoint URL",
        )
    raise FileError(f"{folder} holds no adapter and no model.", fix="export it again")


def _open_lora(folder: Path, base: str | None) -> LocalModel:
    file = read(folder)  # its digests, and that it is no pickle
    base = base or file.base_path
    if base is None:
        raise FileError(f"{folder} does not name its base.", fix="pass --base")
    if not plain_files.is_file(folder / CONFIG):
        raise FileError(
            f"{folder} is not in PEFT's layout.", fix="lorica export RUN --to peft --output FOLDER"
        )
    try:
        from peft import PeftModel
    except ImportError:
        raise MissingError("PEFT is not installed.", fix="pip install 'lorica[peft]'") from None
    place = locate(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's calls of transformers
        model = PeftModel.from_pretrained(_load(place), str(folder))
    return LocalModel(model.eval(), _tokenizer(place, folder), peft=True)


def _load(place: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise FileError(
            f"transformers cannot load {place}.",
            why=(str(error).splitlines() or ["-"])[0],
            fix="export it again, or pass --base",
        ) from None
    return model.eval()


def _tokenizer(place: str, folder: Path) -> Any:
    """Of the base, with the chat template of the export."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if plain_files.is_file(folder / TEMPLATE):
        tokenizer.chat_template = plain_files.read_text(folder / TEMPLATE)
    return tokenizer
