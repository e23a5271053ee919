"""Files to examples: read, render, tokenise, fit, and part train from validation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lorica.data.classes import in_order, look_alikes, mapping_notice, match, unknown_classes
from lorica.data.config import DataConfig
from lorica.data.dataset import Dataset
from lorica.data.example import Example
from lorica.data.overlong import apply_length_limit, limit_of
from lorica.data.pipeline import tokenise_file
from lorica.data.prompt_format import PromptFormat, prompt_format_from_dict
from lorica.data.split import repetitions, split_validation, unmatched
from lorica.data.text_encoder import class_cut
from lorica.data.token_store import TokenStore
from lorica.errors import DataError


@dataclass
class Data:
    train: Dataset
    validation: Dataset
    labels: list[str] | None  # names of the classes, when the rows have one
    notices: list[str]
    digest: str  # sha256 of the files' bytes, or of the rows
    prompt_format: PromptFormat | None = None  # of the training file; None for classes


@dataclass(frozen=True)
class TokenisedFiles:
    """The training file, the validation file if there is one: tokenised, uncut."""

    configs: list[DataConfig]
    stores: list[TokenStore]
    labels: list[str] | None
    classes: list[np.ndarray | None]  # of each store: the class of each of its labels
    notices: list[str] = field(default_factory=list)  # on how labels name classes


def load_data(
    config: DataConfig,
    tokenizer: Any,
    *,
    seed: int,
    max_length: int | None,
    labels: list[str] | None = None,
    new_classes: bool = False,
    texts: bool = False,
) -> Data:
    """All that training needs of `config`.

    max_length: what the base takes, in tokens; None knows no limit.
    labels: the classes that a model knows already; by default those in the rows.
    new_classes: rows whose labels are not `labels` have classes of their own.
    texts: keep the rows' text in memory, as `source` of the examples.

    Raises: DataError for whatever keeps the rows from being trained on.
    """
    limit = limit_of(config, max_length)
    files = tokenise_files(
        config, tokenizer, labels, seed=seed, new_classes=new_classes, texts=texts
    )
    return build_data(files, tokenizer, seed=seed, limit=limit)


def tokenise_files(
    config: DataConfig,
    tokenizer: Any,
    labels: list[str] | None = None,
    *,
    seed: int,
    new_classes: bool = False,
    texts: bool = False,
) -> TokenisedFiles:
    """Read, render and tokenise the files, and leave out nothing.

    Raises: DataError if rows cannot be read, or not be written as text.
    """
    configs, stores = [config], [tokenise_file(config, tokenizer, seed=seed, texts=texts)]
    if isinstance(config.validation, str):
        # The same settings, but for the path: a limit counts training rows.
        other = config.model_copy(
            update={"path": config.validation, "validation": 0.0, "limit": None}
        )
        configs.append(other)
        kind = stores[0].kind
        stores.append(tokenise_file(other, tokenizer, seed=seed, kind=kind, texts=texts))
        _both_conditioned(configs, stores)
    names, class_of = class_names(stores, labels, new_classes)
    if names is None:
        return TokenisedFiles(configs, stores, None, [None for _ in stores])
    number = {label: names.index(name) for label, name in class_of.items()}
    classes = [np.array([number[label] for label in store.meta["labels"]]) for store in stores]
    return TokenisedFiles(configs, stores, names, [*classes], mapping_notice(class_of))


def build_data(files: TokenisedFiles, tokenizer: Any, *, seed: int, limit: int | None) -> Data:
    """Fit the rows to the limit, and part train from validation.

    Raises: DataError for overlong rows under `raise`, and if nothing is to be learned.
    """
    sides: list[Dataset] = []
    notices: list[str] = []
    for config, store, classes in zip(files.configs, files.stores, files.classes, strict=True):
        whole = Dataset.whole(store)
        if classes is not None:
            whole = replace(whole, classes=classes, cut=partial(class_cut, tokenizer=tokenizer))
        fitted = apply_length_limit(whole, config, limit)
        sides.append(fitted.examples)
        found = [*notices_of(store), *files.notices, *fitted.notices]
        notices += [f"{Path(config.path).name}: {line}" for line in found]
    share = files.configs[0].validation
    if not isinstance(share, str):
        sides = [*split_validation(sides[0], share, seed)]
    train, held = sides
    notices += [*look_alikes(files.labels or ()), *unmatched(train, held, files.labels)]
    digests = [store.meta["digest"] for store in files.stores]
    digest = digests[0]
    if len(digests) > 1:
        digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    form = prompt_format_from_dict(files.stores[0].meta["prompt_format"], files.configs[0].path)
    return Data(train, held, files.labels, notices, digest, form)


def notices_of(store: TokenStore) -> list[str]:
    """What there is to say about the rows of a file, before they are fitted."""
    return [*store.meta["lines"], *repetitions(store)]


def distinct_conditions(*sides: Sequence[Example]) -> list[str] | None:
    """The distinct conditions of rows, sorted; None: they have none."""
    found: set[str] = set()
    for examples in sides:
        if isinstance(examples, Dataset):
            found |= examples.conditions
        else:
            found |= {e.condition for e in examples if e.condition is not None}
    return sorted(found) or None


def _both_conditioned(configs: list[DataConfig], stores: list[TokenStore]) -> None:
    """The rows of every file have conditions, or those of none have."""
    pairs = zip(configs, stores, strict=True)
    without = [config.path for config, store in pairs if not store.meta["conditions"]]
    if len(without) == 1:
        raise DataError(
            f"{without[0]} has no condition for its rows, and the other file has.",
            fix="give the rows of both a condition, or those of none",
        )


def class_names(
    stores: list[TokenStore], known: list[str] | None, new_classes: bool = False
) -> tuple[list[str] | None, dict[str, str]]:
    """(the classes in order, or None without; each label of the rows -> its class).

    known: classes that the model has already, whose order and names are kept where the labels
        name them. new_classes: labels that do not name them are classes of their own.

    Raises: DataError for a class that is not `known`, and for a single class.
    """
    if stores[0].kind != "label":
        return None, {}
    found = {label for store in stores for label in store.meta["labels"]}
    if known is not None:
        if (classes := match(found, known, all_numbers=new_classes)) is not None:
            return known, classes
        if not new_classes:
            raise unknown_classes(found, known)
    return in_order(found), {label: label for label in found}
