"""Use the tokenizer and chat template of an adapter folder, and resize the embedding for them.

PEFT, TRL and others save the tokenizer beside an adapter when tokens were added or a template was
set. With the base's tokenizer such an adapter reads other ids than it was trained on.
"""

from pathlib import Path
from typing import Any

from lorica import plain_files
from lorica.base.added_tokens import resize_embedding
from lorica.base.context_length import fit_padding
from lorica.base.load import LoadedModel
from lorica.base.load_errors import translated_errors
from lorica.errors import FileError, listed
from lorica.formats.adapter_file import AdapterFile
from lorica.formats.adapter_folder import WEIGHTS

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
TEMPLATE = "chat_template.jinja"
MAX_TEMPLATE = 2**20  # bytes


def adopt_vocabulary(base: LoadedModel, file: AdapterFile) -> list[str]:
    """Give `base` the tokenizer of the adapter folder, and its embedding the rows. In place.

    Rows that the tokenizer adds must be in the file, or be trained token rows.
    Returns: notices. Raises: FileError if the tokenizer has tokens without a row; BaseError if it
        cannot be read.
    """
    notices: list[str] = []
    before, folder = base.tokenizer, file.folder
    known = base.tokenizer.get_vocab()
    own, text = own_tokenizer(folder), own_template(folder)
    if own is not None:
        notices = _adopt_tokenizer(base, own)
    elif text is not None and text != base.tokenizer.chat_template:
        base.tokenizer.chat_template = text
        notices = [f"the chat template is the adapter's, {folder / TEMPLATE}"]
    notices += _resize_embedding(base, before, file, known)
    if base.tokenizer is before:
        return notices
    return notices + [n for n in fit_padding(base.model, base.tokenizer) if n not in base.notices]


def own_tokenizer(folder: Path) -> Any:
    """The tokenizer that an adapter's folder holds; None: it has none. Raises: BaseError,
    FileError."""
    if not any(plain_files.is_file(folder / name) for name in TOKENIZERS):
        return None
    from transformers import AutoTokenizer

    plain_files.check(folder, *plain_files.names_in(folder))  # it opens what it finds there
    with translated_errors(str(folder), what="tokenizer of the adapter"):
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def own_template(folder: Path) -> str | None:
    """The chat template that stands by itself in an adapter's folder."""
    if not plain_files.is_file(folder / TEMPLATE):
        return None
    return plain_files.read_text(folder / TEMPLATE, MAX_TEMPLATE)


def _adopt_tokenizer(base: LoadedModel, own: Any) -> list[str]:
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


def _resize_embedding(
    base: LoadedModel, before: Any, file: AdapterFile, known: dict[str, int]
) -> list[str]:
    """Resize the embedding and head to the rows that the adapter was saved with. In place.

    before: the base's own tokenizer. known: its vocabulary; a row that the embedding lacks for a
    token of it is not the adapter's fault.
    """
    model: Any = base.model
    tokenizer = base.tokenizer
    table = model.get_input_embeddings()
    added = (i for token, i in tokenizer.get_vocab().items() if known.get(token) != i)
    rows = len(table.weight)
    needed = max(rows, 1 + max(added, default=-1))
    name = next(name for name, module in model.named_modules() if module is table)
    saved = next((len(t) for t in file.tensors_of([f"{name}.weight"]).values() if t.ndim), None)
    trained = set(file.spec.targets.trainable_token_indices)
    wanted = saved or (needed if trained >= set(range(rows, needed)) else rows)
    if needed > wanted:
        raise FileError(
            f"the adapter's tokenizer has token {needed - 1}, and there is no row for it.",
            embedding=f"{rows} rows in the base, {saved or 'none'} in {WEIGHTS}",
            fix="save the adapter with its embedding rows "
            "(modules_to_save or trainable_token_indices)",
        )
    if wanted == rows:
        return []
    resize_embedding(model, before, tokenizer, wanted)
    return [f"the embedding has {wanted:,} rows, as the adapter was trained; the base had {rows:,}"]
