"""An export read by transformers, and by PEFT where it is a LoRA, as `replay` asks it.

Neither goes through lorica's own reader: what they compute of the files is what others will.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lorica import plain_files
from lorica.base.describe import locate
from lorica.errors import FileError, LoricaError, MissingError, memory_full
from lorica.formats.adapter_file import read
from lorica.formats.adapter_folder import CONFIG, is_adapter
from lorica.formats.golden import GOLDEN, Golden, GoldenRow
from lorica.handover.replay import Answer, Opening

TEMPLATE = "chat_template.jinja"


class LocalModel:
    """model: of transformers; for a LoRA inside a PeftModel. peft: that it is."""

    def __init__(self, model: Any, tokenizer: Any, *, peft: bool):
        self._model, self._tokenizer, self._peft = model, tokenizer, peft

    @property
    def vocabulary(self) -> int:
        """How many tokens have an embedding."""
        return self._model.get_input_embeddings().weight.shape[0]

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
            with reading(
                "transformers cannot write the recorded conversations with the chat template.",
                fix=f"put the {TEMPLATE} of the training into the export",
            ):
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
        model = _open_lora(folder, base or (golden.header.base if golden.header else None))
        return _checked(model, golden, folder)
    if plain_files.is_file(folder / "config.json"):
        model = LocalModel(_load(str(folder)), _tokenizer(str(folder), folder), peft=False)
        return _checked(model, golden, folder)
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
    float_base = _load(place)
    what, fix = f"PEFT cannot load {folder} on {place}.", "export it again, or pass --base"
    with warnings.catch_warnings(), reading(what, fix=fix):
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's calls of transformers
        model = PeftModel.from_pretrained(float_base, str(folder))
    return LocalModel(model.eval(), _tokenizer(place, folder), peft=True)


def _load(place: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with reading(f"transformers cannot load {place}.", fix="export it again, or pass --base"):
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    return model.eval()


def _tokenizer(place: str, folder: Path) -> Any:
    """Of the base, with the chat template of the export."""
    from transformers import AutoTokenizer

    what = f"transformers cannot load the tokenizer of {place}, or {folder / TEMPLATE}."
    with reading(what, fix="export it again, or pass --base"):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        if plain_files.is_file(folder / TEMPLATE):
            tokenizer.chat_template = plain_files.read_text(folder / TEMPLATE)
    return tokenizer


@contextmanager
def reading(what: str, *, fix: str) -> Iterator[None]:
    """Turn whatever a library raises about files into a FileError. what: cannot be done."""
    try:
        yield
    except LoricaError:
        raise
    except Exception as error:
        if memory_full(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = " ".join(lines[:2])[:500] or type(error).__name__
        raise FileError(what, why=why, fix=fix) from None


def _checked(model: LocalModel, golden: Golden, folder: Path) -> LocalModel:
    """The model. Raises: FileError if it lacks tokens of the recorded answers."""
    largest = max(token for row in golden.rows for token in row.ids)
    if largest >= model.vocabulary:
        raise FileError(
            f"{folder / GOLDEN} has the token id {largest:.4g}, and the model has "
            f"{model.vocabulary:,} tokens.",
            fix="pass --base with the base of the training, or export it again",
        )
    return model
