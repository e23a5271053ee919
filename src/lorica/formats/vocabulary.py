"""Take the tokenizer and chat template that an adapter folder brings, and the rows they need.

PEFT, TRL and others save the tokenizer beside an adapter when tokens were added or a template was
set. With the base's tokenizer such an adapter reads other ids than it was trained on.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lorica import plain_files
from lorica.base.added_tokens import grow
from lorica.base.context_length import fit_padding
from lorica.base.load import LoadedModel
from lorica.base.load_errors import explained
from lorica.errors import FileError, listed
from lorica.formats import commit
from lorica.formats.peft.beside import token_ids

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
TEMPLATE = "chat_template.jinja"
MAX_TEMPLATE = 2**20  # bytes


def take_vocabulary(base: LoadedModel, folder: Path, weights: Path) -> list[str]:
    """Give `base` the tokenizer of the adapter folder, and its embedding the rows. In place.

    weights: the adapter's tensors; new rows must stand in them, or be trained token rows.

    Returns: notices. Raises: FileError if the tokenizer has tokens without a row; BaseError if it
        cannot be read.
    """
    notices: list[str] = []
    before = base.tokenizer
    own = base.tokenizer.get_vocab()
    if any(plain_files.is_file(folder / name) for name in TOKENIZERS):
        notices = _take_tokenizer(base, folder)
    elif plain_files.is_file(folder / TEMPLATE):
        text = plain_files.read_text(folder / TEMPLATE, MAX_TEMPLATE)
        if text != base.tokenizer.chat_template:
            base.tokenizer.chat_template = text
            notices = [f"the chat template is the adapter's, {folder / TEMPLATE}"]
    notices += _add_rows(base, before, weights, _trained_rows(folder), own)
    if base.tokenizer is before:
        return notices
    return notices + [n for n in fit_padding(base.model, base.tokenizer) if n not in base.notices]


def _take_tokenizer(base: LoadedModel, folder: Path) -> list[str]:
    from transformers import AutoTokenizer

    plain_files.check(folder, *plain_files.names_in(folder))  # it opens what it finds there
    own = explained(
        str(folder),
        lambda: AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False),
        what="tokenizer of the adapter",
    )
    before, notices = base.tokenizer, []
    if own.chat_template and own.chat_template != before.chat_template:
        notices.append(f"the chat template is the adapter's, not that of {base.path}")
    elif not own.chat_template:
        own.chat_template = before.chat_template
    if own.get_vocab() != before.get_vocab():
        more = sorted(own.get_vocab().keys() - before.get_vocab().keys())
        notices.append(
            f"the tokenizer is the adapter's: {len(own):,} tokens, {base.path} has "
            f"{len(before):,}; new: {listed(more)}"
        )
    base.tokenizer = own
    if own.pad_token_id is None:
        own.pad_token = before.pad_token or own.eos_token
    return notices


def _add_rows(
    base: LoadedModel, before: Any, weights: Path, trained: set[int], own: dict[str, int]
) -> list[str]:
    """Resize the embedding and head to the rows that the adapter was saved with. In place.

    before: the base's own tokenizer. trained: ids whose rows the adapter brings. own: the
    vocabulary of the base's tokenizer; a row that it lacks is the base's own matter.
    """
    model: Any = base.model
    tokenizer = base.tokenizer
    table = model.get_input_embeddings()
    new = (i for token, i in tokenizer.get_vocab().items() if own.get(token) != i)
    have = len(table.weight)
    need = max(have, 1 + max(new, default=-1))
    name = next(name for name, module in model.named_modules() if module is table)
    saved = _saved_rows(weights, name)
    wanted = saved or (max(need, have) if trained >= set(range(have, need)) else have)
    if need > wanted:
        raise FileError(
            f"the adapter's tokenizer has token {need - 1}, and there is no row for it.",
            embedding=f"{have} rows in the base, {saved or 'none'} in {weights.name}",
            fix="save the adapter with its embedding rows "
            "(modules_to_save or trainable_token_indices)",
        )
    if wanted == have:
        return []
    grow(model, before, tokenizer, wanted)
    return [f"the embedding has {wanted:,} rows, as the adapter was trained; the base had {have:,}"]


def _trained_rows(folder: Path) -> set[int]:
    """The ids of trainable_token_indices, by the manifest or by PEFT's config."""
    if plain_files.is_file(folder / "manifest.json"):
        found = commit.read_json(folder / "manifest.json").get("targets")
        found = found.get("trainable_token_indices") if isinstance(found, dict) else None
    else:
        found = commit.read_json(folder / "adapter_config.json").get("trainable_token_indices")
    ids = token_ids(found) if isinstance(found, list | dict) else []
    return {i for i in ids if type(i) is int}


def _saved_rows(weights: Path, embedding: str) -> int | None:
    """Rows of the input embedding that the adapter's file holds whole; None: it holds none."""
    leaf = f"{embedding}.weight"
    try:
        with safe_open(weights, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                if key == leaf or key.endswith(f".{leaf}"):
                    return tensors.get_slice(key).get_shape()[0]
    except SafetensorError:
        return None  # loading the adapter says what is wrong with the file
    return None
