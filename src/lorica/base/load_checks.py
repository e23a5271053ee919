"""Try what was loaded once, so that a base that cannot work is refused before anything is trained.

Values that a config or a tokenizer may hold without an error at load can fail at the first call:
an activation's dropout of null, a division by no heads, a tokenizer that knows no unknown word.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.base import untrusted_files
from lorica.base.load_errors import explained
from lorica.core.draws import drawing
from lorica.core.modes import in_mode
from lorica.errors import BaseError

MAX_ID = 10**7
"""Tokens: the largest vocabularies have a million."""
MAX_POSITIONS = 2**31
"""Tokens: no model states a longer context."""
TEXT = "Ab 1,é中\N{GRINNING FACE}\n\0<x>"
"""Letters, digits, blanks and signs that few vocabularies have whole."""


def check_weights(path: str, folder: str, kind: Any, options: dict[str, Any]) -> None:
    """Hold the sizes that config.json states against the weight files, before memory is taken.

    kind: the class of transformers that loads it, with options. Of a base of the hub, whose files
    are fetched one by one, only the index is checked.

    Raises: BaseError, FileError.
    """
    from transformers import AutoConfig
    from transformers.utils.hub import cached_file

    if not Path(folder).is_dir():
        index = explained(
            path,
            lambda: cached_file(
                folder, untrusted_files.INDEX, _raise_exceptions_for_missing_entries=False
            ),
        )
        if index is not None:
            untrusted_files.named_in(Path(index))
        return
    own = {key: value for key, value in options.items() if "label" in key}

    def skeleton() -> nn.Module:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **own)
        with torch.device("meta"), drawing(0):
            return kind.from_config(config, trust_remote_code=False)

    model = explained(path, skeleton)
    values = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    held = untrusted_files.held_by(Path(folder))
    untrusted_files.check_size(path, values, held)
    if getattr(model.config, "quantization_config", None) is None:
        untrusted_files.check_floats(path, (name for name, _ in model.named_parameters()), held)


@torch.no_grad()
def check_runs(path: str, model: Any) -> None:
    """Run the model on four tokens, as it trains. Raises: BaseError unless it gives logits."""
    device = next(model.parameters()).device
    size = getattr(model.config.get_text_config(), "vocab_size", None) or 1

    def run() -> Any:
        ids = torch.tensor([[i % size for i in range(1, 5)]], device=device)
        # The base's dropout takes nothing from the run's own seed.
        with drawing(0, device), in_mode(model, training=True):
            return model(input_ids=ids)

    result = explained(path, run)
    if not isinstance(getattr(result, "logits", None), torch.Tensor):
        raise BaseError(
            f"the base {path!r} gives no logits.",
            fix="use a causal language model, or a sequence classifier",
        )


def check_token_ids(path: str, model: Any) -> None:
    """Raises: BaseError if a special token of the base's generation settings is no token id."""
    settings = getattr(model, "generation_config", None)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(settings, name, None)
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(type(i) is int and -1 <= i < MAX_POSITIONS for i in ids):
            raise BaseError(
                f"generation_config.json of {path} has {name} {value!r:.80}, which is no token id.",
                fix="correct that value, or download the file again",
            )


def checked_tokenizer(path: str, tokenizer: Any) -> Any:
    """`tokenizer`, if it makes ids of text and text of ids. Raises: BaseError."""
    ids = explained(path, lambda: tokenizer(TEXT)["input_ids"], what="tokenizer")
    explained(path, lambda: tokenizer.decode(ids), what="tokenizer")
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    if not all(type(i) is int for i in ids) or not all(i is None or type(i) is int for i in known):
        raise BaseError(
            f"the tokenizer of {path} does not make ids of text.", fix="download its files again"
        )
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if number > MAX_ID:  # tables by id would be made for all numbers below
        raise BaseError(
            f"the tokenizer of {path} gives the token {token[:40]!r} the number {number:,}.",
            fix="download its files again",
        )
    return tokenizer
