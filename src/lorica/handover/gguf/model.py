"""Write a base or merged model as GGUF: weights, config, tokenizer, template, stop tokens."""

from pathlib import Path
from typing import Any

from lorica.base.describe import locate, read_config
from lorica.base.load_errors import translated_errors
from lorica.data.chat_template import chat_templates
from lorica.errors import BaseError, DataError, counted, listed
from lorica.handover.gguf.architectures import architecture_of
from lorica.handover.gguf.hyperparameters import hyperparameter_fields
from lorica.handover.gguf.special_tokens import special_token_fields
from lorica.handover.gguf.tensors import planned_tensors
from lorica.handover.gguf.tokenizer import tokenizer_fields
from lorica.handover.gguf.writer import BLOCK, Dtype, Fields, write

FILE_TYPES: dict[Dtype, int] = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}


def write_model(folder: str | Path, output: Path, *, dtype: Dtype) -> list[str]:
    """Write the model in `folder` as the GGUF file `output`, whole or not at all.

    folder: of a base or a merged model, a hub id, or "bundled". dtype: of its matrices.
    Returns: notices.
    Raises: BaseError if llama.cpp would compute something else, or its tokenizer cut text
        otherwise; FileError if the folder is damaged; MergeError if a number does not fit the
        dtype; ResourceError if `output` exists or cannot be written.
    """
    source = str(folder)
    config = read_config(source)
    architecture = architecture_of(config, source)
    if getattr(config, "quantization_config", None) is not None:
        raise BaseError(
            f"{source} is quantised; GGUF is written from float weights.",
            fix="merge the adapter into the float model (lorica merge --base)",
        )
    tokenizer = load_tokenizer(source)
    stops = _stops(source, tokenizer)
    fields: Fields = {
        "general.type": "model",
        "general.name": Path(output).stem,
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": 2,
    }
    numbers, notices = hyperparameter_fields(config, architecture, source)
    words, more = tokenizer_fields(tokenizer, config.vocab_size, source)
    special, last = special_token_fields(tokenizer, stops)
    tensors = planned_tensors(source, config, architecture, dtype)
    write(Path(output), architecture.name, {**fields, **numbers, **words, **special}, tensors)
    whole = [t.name for t in tensors if len(t.shape) == 2 and t.dtype != dtype and dtype == "q8_0"]
    if whole:
        notices.append(
            f"{listed(whole)} stay in more bits: their rows are no multiple of {BLOCK} numbers"
        )
    return [
        f"{counted(len(tensors), 'tensor')} as GGUF, matrices in {dtype}",
        *notices,
        *more,
        *last,
    ]


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder, a hub id or "bundled". Raises: BaseError, FileError."""
    from transformers import AutoTokenizer

    with translated_errors(source, what="tokenizer"):
        return AutoTokenizer.from_pretrained(locate(source), trust_remote_code=False)


def _stops(source: str, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: of generation_config.json, and the template's end of turn."""
    from transformers import GenerationConfig

    try:
        own = GenerationConfig.from_pretrained(locate(source)).eos_token_id
    except OSError:  # a model without one
        own = read_config(source).eos_token_id
    stops = set(own if isinstance(own, list) else [own]) - {None}
    end = _end_of_turn(tokenizer)
    return stops | {token for text, token in tokenizer.get_added_vocab().items() if text == end}


def _end_of_turn(tokenizer: Any) -> str | None:
    """What the chat template writes after an answer; None: it is not known."""
    if not tokenizer.chat_template:
        return None
    try:
        end = chat_templates(tokenizer).for_tools(None).end_of_turn
    except DataError:  # a template that lorica does not read; llama.cpp may
        return None
    return end.strip() if end else None
