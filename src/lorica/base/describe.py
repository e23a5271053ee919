"""Describe a base from its files, without loading its weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lorica.base import classifier
from lorica.base.bundled import FOLDER, NAME
from lorica.base.checkpoint_tensors import FLOATS, dtype_of, keys_of
from lorica.base.context_length import positions_of
from lorica.base.folder import check_folder
from lorica.base.hub import reachable_or_cached
from lorica.base.load_checks import MAX_POSITIONS
from lorica.base.load_errors import translated_errors
from lorica.base.model_view import ConfigView, config_view
from lorica.base.quantisation_config import quantisation_of
from lorica.errors import BaseError


def locate(path: str) -> str:
    """The folder of a base, or its hub id.

    Raises: BaseError, FileError if it is neither, or the folder does not hold a whole base.
    """
    if path == NAME:
        return str(FOLDER)
    local = Path(path)
    local_only = local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    if local.exists() or local_only or local.suffix == ".gguf":
        check_folder(local)
        return str(local)
    return reachable_or_cached(path)


def read_config(path: str) -> Any:
    """The transformers config of the base at `path`."""
    from transformers import AutoConfig

    folder = locate(path)
    with translated_errors(path):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def dtype_of_base(path: str) -> str:
    """The dtype of most weights of the base at `path`, as its files hold them; else its config's.

    Raises: BaseError if neither gives a dtype that lorica computes in.
    """
    folder = locate(path)
    stated = getattr(read_config(path), "dtype", None)
    name = dtype_of(keys_of(folder)) or str(stated).removeprefix("torch.")
    if name not in FLOATS.values():
        raise BaseError(
            f"the dtype of {path} is not known: neither its files nor its config.json give one "
            "that lorica computes in.",
            known=", ".join(FLOATS.values()),
            fix="set dtype to one of them",
        )
    return name


def skeleton(path: str, kind: Any) -> nn.Module:
    """The model without its weights, on the meta device. kind: an Auto class of transformers."""
    config = read_config(path)
    with translated_errors(path), torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False)


def context_length(path: str) -> int | None:
    """The longest row in tokens that the base at `path` was made for; None: no limit."""
    from transformers import AutoModel

    config = read_config(path)
    view = config_view(config)
    stated = view.stated_positions
    if stated not in (None, -1) and not (type(stated) is int and 0 < stated <= MAX_POSITIONS):
        raise BaseError(
            f"config.json of {path} has max_position_embeddings {stated!r:.80}, which is not a "
            "length.",
            fix="correct that value, or download the model's config.json again",
        )
    if (most := view.max_length) is None or view.has_rope:
        return most  # there is no table of positions whose rows could be fewer
    return positions_of(config, skeleton(path, AutoModel))


def row_limit(path: str, asked: int | None) -> int | None:
    """The longest row in tokens that is trained on, at most; None: no limit.

    asked: data.max_length. It may be above the context of a base that rotates its positions, which
    computes longer rows too, though it has not learned to; see `beyond_training_notice`.
    """
    limit = context_length(path)
    if limit is None or asked is None or not _view(path).has_rope:
        return limit
    return max(limit, asked)


def beyond_training_notice(path: str, lengths: np.ndarray) -> list[str]:
    """A notice on rows that are longer than those that the base was trained on; [] without any.

    lengths: (N,) tokens of the rows.
    """
    trained = _view(path).max_positions
    if trained is None or not (long := int((lengths > trained).sum())):
        return []
    notice = (
        f"{long:,} of {len(lengths):,} rows are longer than {trained:,} tokens, the length that "
        f"the base was trained for; the longest has {lengths.max():,}. Its positions beyond that "
        "are new to it: compare the loss of long rows with that of short ones"
    )
    return [notice]


def vocabulary_size(path: str) -> int | None:
    """How many tokens the base at `path` has embeddings of, by its config."""
    return _view(path).vocab_size


def hidden_size(path: str) -> int | None:
    """The width of the base at `path`, by its config."""
    return _view(path).hidden_size


def quantised_as(path: str) -> str | None:
    """How the checkpoint at `path` is quantised; None: it holds floats."""
    return quantisation_of(_view(path).quantisation)[0]


def own_classes(path: str, *, needed: bool = False) -> list[str] | None:
    """The classes of the base at `path`; None: it has no head that gives any.

    needed: raise a BaseError if it is a sequence classifier, and its head gives none.
    """
    config = read_config(path)
    if needed:
        classifier.check_head(path, config)
    return classifier.own_classes(config)


def class_weights(path: str) -> list[str]:
    """The keys of the weights that give classes, of a classifier on the base at `path`."""
    from transformers import AutoModelForSequenceClassification

    return list(classifier.class_axes(skeleton(path, AutoModelForSequenceClassification)))


def _view(path: str) -> ConfigView:
    return config_view(read_config(path))
