"""Checks of a loaded base, so that one that cannot work is refused before anything is trained.

Values that a config or a tokenizer may hold without an error at load can fail at the first call:
an activation's dropout of null, a division by zero heads, a tokenizer without an unknown token.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.base import untrusted_files
from lorica.base.load_errors import translated_errors
from lorica.base.model_view import config_view_of, model_view
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
    """Compare the sizes that config.json states with the weight files, before memory is allocated.

    kind: the class of transformers that loads it, with options. Of a base of the hub, whose files
    are fetched one by one, only the index is checked.

    Raises: BaseError, FileError.
    """
    from transformers import AutoConfig

    if not Path(folder).is_dir():
        _check_index(path, folder)
        return
    labels = {key: value for key, value in options.items() if "label" in key}
    with translated_errors(path):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **labels)
        with torch.device("meta"), drawing(0):
            model = kind.from_config(config, trust_remote_code=False)
    values = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    contents = untrusted_files.weight_contents(Path(folder))
    untrusted_files.check_size(path, values, contents)
    if config_view_of(model).quantisation is None:
        names = (name for name, _ in model.named_parameters())
        untrusted_files.check_floats(path, names, contents)


def _check_index(path: str, repo: str) -> None:
    """Check the index of the weights of a base of the hub, if it has one."""
    from transformers.utils.hub import cached_file

    with translated_errors(path):
        index = cached_file(
            repo, untrusted_files.INDEX, _raise_exceptions_for_missing_entries=False
        )
    if index is not None:
        untrusted_files.files_in_index(Path(index))


@torch.no_grad()
def check_forward(path: str, model: nn.Module) -> None:
    """Run the model on four tokens, as it trains. Raises: BaseError unless it returns logits."""
    device = next(model.parameters()).device
    size = config_view_of(model).vocab_size or 1
    ids = torch.tensor([[i % size for i in range(1, 5)]], device=device)
    # The random numbers of the base's dropout must not come from the run's own seed.
    with translated_errors(path), drawing(0, device), in_mode(model, training=True):
        output = model(input_ids=ids)
    match output:
        case object(logits=torch.Tensor()):
            return
    raise BaseError(
        f"the base {path!r} returns no logits.",
        fix="use a causal language model, or a sequence classifier",
    )


def check_special_tokens(path: str, model: nn.Module) -> None:
    """Raises: BaseError if a special token of the generation settings is not a token id."""
    for name, value in model_view(model).special_tokens.items():
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(type(i) is int and -1 <= i < MAX_POSITIONS for i in ids):
            raise BaseError(
                f"generation_config.json of {path} has {name} {value!r:.80}, which is not a token "
                "id.",
                fix="correct that value, or download the file again",
            )


def check_tokenizer(path: str, tokenizer: Any) -> None:
    """Raises: BaseError unless `tokenizer` turns text into ids and ids into text."""
    with translated_errors(path, what="tokenizer"):
        ids = tokenizer(TEXT)["input_ids"]
        tokenizer.decode(ids)
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    are_ints = all(type(i) is int for i in ids)
    if not are_ints or not all(i is None or type(i) is int for i in special):
        raise BaseError(
            f"the tokenizer of {path} does not turn text into ids.", fix="download its files again"
        )
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if number > MAX_ID:  # tables by id would be made for all numbers below
        raise BaseError(
            f"the tokenizer of {path} gives the token {token[:40]!r} the number {number:,}.",
            fix="download its files again",
        )
