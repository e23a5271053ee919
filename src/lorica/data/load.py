"""Load training and validation examples from files: tokenise, limit the length, and split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lorica.data.classes import (
    mapping_notices,
    match_labels,
    similar_name_notices,
    sort_classes,
    unknown_classes_error,
)
from lorica.data.config import DataConfig
from lorica.data.dataset import Dataset
from lorica.data.example import Example
from lorica.data.mixture import Mixture, mixture_of, split_files, tokenise_files_of
from lorica.data.overlong import apply_length_limit, limit_of
from lorica.data.pipeline import tokenise_file
from lorica.data.prompt_format import PromptFormat, prompt_format_from_dict
from lorica.data.split import overlap_notices, repetition_notices
from lorica.data.text_encoder import truncate_classified
from lorica.data.token_store import TokenStore
from lorica.errors import DataError


@dataclass
class Data:
    train: Dataset
    validation: Dataset
    labels: list[str] | None  # the names of the classes; None for rows without classes
    notices: list[str]
    digest: str  # sha256 of the files' bytes, or of the rows
    prompt_format: PromptFormat | None = None  # of the training file; None for classes
    mixture: Mixture | None = None  # of several training files

    @property
    def epoch_rows(self) -> int:
        """Training rows of one epoch."""
        return len(self.train) if self.mixture is None else self.mixture.rows


@dataclass(frozen=True)
class TokenisedFiles:
    """The training file and, if there is one, the validation file: tokenised, uncut."""

    configs: list[DataConfig]
    stores: list[TokenStore]
    labels: list[str] | None
    classes: list[np.ndarray | None]  # for each store: the class of each of its labels
    notices: list[str] = field(default_factory=list)  # on how labels match classes


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
    """Load the training and validation examples of `config`.

    max_length: the context of the base, in tokens; None: no limit.
    labels: the classes of a trained classifier; by default the classes are those of the rows.
    new_classes: if the labels of the rows are not in `labels`, they are new classes.
    texts: keep the rows' text in memory, as `source` of the examples.

    Raises: DataError for rows that cannot be trained on.
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
    """Read, render and tokenise the files. No row is dropped or cut.

    Raises: DataError if rows cannot be read, or cannot be rendered.
    """
    configs, stores = [config], [tokenise_files_of(config, tokenizer, seed=seed, texts=texts)]
    if isinstance(config.validation, str):
        # The same settings except the path and the limit, which counts training rows.
        other = config.model_copy(
            update={
                "path": config.validation,
                "mixture": [],
                "validation": 0.0,
                "limit": None,
                "streaming": False,
            }
        )
        configs.append(other)
        kind = stores[0].kind
        stores.append(tokenise_file(other, tokenizer, seed=seed, kind=kind, texts=texts))
        _check_conditions(configs, stores)
    names, class_of = class_names(stores, labels, new_classes)
    if names is None:
        return TokenisedFiles(configs, stores, None, [None for _ in stores])
    number = {label: names.index(name) for label, name in class_of.items()}
    classes = [np.array([number[label] for label in store.meta["labels"]]) for store in stores]
    return TokenisedFiles(configs, stores, names, [*classes], mapping_notices(class_of))


def build_data(files: TokenisedFiles, tokenizer: Any, *, seed: int, limit: int | None) -> Data:
    """Apply the length limit, and split training from validation rows.

    Raises: DataError for overlong rows under `raise`, and if no row has a label token.
    """
    sides: list[Dataset] = []
    notices: list[str] = []
    for config, store, classes in zip(files.configs, files.stores, files.classes, strict=True):
        whole = Dataset.whole(store)
        if classes is not None:
            truncate = partial(truncate_classified, tokenizer=tokenizer)
            whole = replace(whole, classes=classes, truncate=truncate)
        fitted = apply_length_limit(whole, config, limit)
        sides.append(fitted.dataset)
        of_file = [*notices_of(store), *files.notices, *fitted.notices]
        name = "" if config.mixture else f"{Path(config.path).name}: "
        notices += [f"{name}{notice}" for notice in of_file]
    share = files.configs[0].validation
    if not isinstance(share, str):
        sides = [*split_files(sides[0], files.configs[0], share, seed)]
    train, validation = sides
    mixture, of_mixture = mixture_of(train, files.configs[0])
    notices += of_mixture
    notices += similar_name_notices(files.labels or ())
    notices += overlap_notices(train, validation, files.labels)
    digests = [store.meta["digest"] for store in files.stores]
    digest = digests[0]
    if len(digests) > 1:
        digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    prompt_format = prompt_format_from_dict(
        files.stores[0].meta["prompt_format"], files.configs[0].path
    )
    return Data(train, validation, files.labels, notices, digest, prompt_format, mixture)


def notices_of(store: TokenStore) -> list[str]:
    """The notices about the rows of a file, before the length limit."""
    return [*store.meta["notices"], *repetition_notices(store)]


def distinct_conditions(*sides: Sequence[Example]) -> list[str] | None:
    """The distinct conditions of rows, sorted; None if they have none."""
    conditions: set[str] = set()
    for examples in sides:
        if isinstance(examples, Dataset):
            conditions |= examples.conditions
        else:
            conditions |= {e.condition for e in examples if e.condition is not None}
    return sorted(conditions) or None


def _check_conditions(configs: list[DataConfig], stores: list[TokenStore]) -> None:
    """Raises: DataError if only one of two files has conditions."""
    pairs = zip(configs, stores, strict=True)
    without = [config.path for config, store in pairs if not store.meta["conditions"]]
    if len(without) == 1:
        raise DataError(
            f"the rows of {without[0]} have no condition, and those of the other file have one.",
            fix="give the rows of both files a condition, or of neither",
        )


def class_names(
    stores: list[TokenStore], known: list[str] | None, new_classes: bool = False
) -> tuple[list[str] | None, dict[str, str]]:
    """(the classes in order, the class of each label). The classes are None for other rows.

    known: the classes of a trained classifier. Their names and order stay if the labels match
        them. new_classes: labels that do not match are new classes.

    Raises: DataError for a class that is not `known`, and for a single class.
    """
    if stores[0].kind != "label":
        return None, {}
    labels = {label for store in stores for label in store.meta["labels"]}
    if known is not None:
        if (classes := match_labels(labels, known, all_numbers=new_classes)) is not None:
            return known, classes
        if not new_classes:
            raise unknown_classes_error(labels, known)
    return sort_classes(labels), {label: label for label in labels}
