"""Sequence classifiers: the classes that a base names, and which of its weights are new.

A checkpoint rarely has the head that the rows need. A missing weight is new by design if the class
that wrote the checkpoint lacks it too: BertForMaskedLM has no pooler, and no classifier of any
depth. A weight that this class has and the files lack is an error. So no list of names is needed.

A classification layer is kept only if the checkpoint's classes are those of the rows, in that
order. Otherwise it starts anew, also where its shape would fit.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lorica.base.model_view import config_of, config_view, model_view
from lorica.core.draws import drawing
from lorica.data.classes import class_names_fault
from lorica.errors import BaseError, listed

KIND = "ForSequenceClassification"
ONE_CLASS = "single_label_classification"
SHOWN = 6


@dataclass(frozen=True)
class Head:
    """The classification head on a checkpoint.

    fresh: keys of weights that start from seed 0. lost, misshaped: keys that must be refused.
    whole: the layers that every adapter trains and saves whole.
    """

    fresh: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)


def is_classifier(config: Any) -> bool:
    """The checkpoint is a sequence classifier, of whatever kind."""
    return any(str(name).endswith(KIND) for name in config.architectures or ())


def other_problem(config: Any) -> str | None:
    """The problem_type of a head whose outputs are not one class for each row; None: they are."""
    problem = config_view(config).problem_type
    return None if problem == ONE_CLASS else problem


def fault_of_head(config: Any) -> str | None:
    """Why the outputs of a head give no probability of each class; None: they do."""
    if problem := other_problem(config):
        return f"its head is not for one class for each row (problem_type {problem})"
    if config.num_labels < 2:
        return f"its head has {config.num_labels} output (num_labels), as a regression has"
    names: dict[int, str] = config.id2label or {}
    if unnumbered := sorted(set(range(config.num_labels)) - set(names)):
        return f"id2label in its config.json has no name for output {listed(unnumbered)}"
    if fault := class_names_fault(class_names(config)):
        return f"id2label in its config.json is wrong: {fault}"
    return None


def class_names(config: Any) -> list[str]:
    """The names that a config gives the outputs of a classifier, in their order."""
    names: dict[int, str] = config.id2label or {}
    return ["" if (name := names.get(i)) is None else str(name) for i in range(config.num_labels)]


def names_of(model: nn.Module) -> list[str] | None:
    """The class names of a model; None: it is not a classifier, or its config names none."""
    config = config_of(model)
    if config is None or not type(model).__name__.endswith(KIND) or fault_of_head(config):
        return None
    names = class_names(config)
    return None if names == [f"LABEL_{i}" for i in range(len(names))] else names


def own_classes(config: Any) -> list[str] | None:
    """The names of a checkpoint's classes in the order of its outputs; None: it gives none."""
    return class_names(config) if is_classifier(config) and not fault_of_head(config) else None


def check_head(path: str, config: Any) -> None:
    """Raises: BaseError if the checkpoint is a classifier whose own head gives no classes."""
    if is_classifier(config) and (fault := fault_of_head(config)):
        raise BaseError(
            f"{path} gives no probabilities of classes: {fault}.",
            id2label=listed((f"{i}: {n!r}" for i, n in (config.id2label or {}).items()), 12),
            fix=f"correct its config.json if that is wrong, or train a head for your classes: "
            f"lorica train --base {path} with rows of text and label",
        )


def settings_for(labels: list[str], config: Any) -> dict[str, Any]:
    """What replaces fields of a checkpoint's `config` in a classifier of `labels`."""
    settings = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    return settings | ({"problem_type": ONE_CLASS} if other_problem(config) else {})


def inspect(model: nn.Module, config: Any, info: Mapping[str, Any], labels: list[str]) -> Head:
    """Tell new weights from lost ones. In place: new weights that the files had start anew.

    config: the checkpoint's own. info: missing and misshaped weights, by transformers.
    """
    shape_of = {key: tuple(shape) for key, shape, _ in info["mismatched_keys"]}
    missing = {str(key) for key in info["missing_keys"]} - set(shape_of)
    expected = designed(config) if missing else set[str]()
    prefix = model_view(model).prefix
    lost = {k for k in missing if is_lost(k, prefix, expected)}
    axes, same_classes = class_axes(model), own_classes(config) == labels
    sizes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    misshaped = [
        f"{key} is {shape}, not {sizes.get(key)}"
        for key, shape in sorted(shape_of.items())
        if same_classes or key not in axes or not _differ_along(shape, sizes[key], axes[key])
    ]
    if not same_classes:
        renew(model, [key for key in axes if key not in missing and key not in shape_of])
    fresh = sorted({*(() if same_classes else axes), *(missing - lost)})
    return Head(fresh, sorted(lost), misshaped, trained_whole(sizes, prefix, fresh, axes))


def designed(config: Any) -> set[str] | None:
    """The weights of the class that a checkpoint's config names; None: the class is not known."""
    import transformers

    for name in config.architectures or ():
        kind = getattr(transformers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            with torch.device("meta"):
                return {key for key, _ in kind(config).named_parameters(remove_duplicate=False)}
    return None


def is_lost(key: str, prefix: str, expected: Collection[str] | None) -> bool:
    """Whether a missing weight is one that the checkpoint should have.

    prefix: of the backbone's keys, which the classes of one architecture may write or leave out.
    expected: the keys of the checkpoint's own class; None: those of the backbone.
    """
    bare = key.removeprefix(f"{prefix}.") if prefix else key
    if expected is None:
        return bare != key or not prefix
    return any(f".{other}".endswith(f".{bare}") for other in expected)


def class_axes(model: nn.Module) -> dict[str, int]:
    """Keys of the weights whose shape follows from the number of classes, and along which axis."""
    foreign: Any = type(model)
    config: Any = model.config
    shapes = []
    for extra in (0, 1):
        other = type(config).from_dict(config.to_dict() | {"id2label": None, "label2id": None})
        other.num_labels = config.num_labels + extra
        with torch.device("meta"):
            shapes.append({k: p.shape for k, p in foreign(other).named_parameters()})
    fewer, more = shapes
    return {
        key: next(i for i, (a, b) in enumerate(zip(shape, more[key], strict=True)) if a != b)
        for key, shape in fewer.items()
        if shape != more[key]
    }


def renew(model: nn.Module, keys: Iterable[str]) -> None:
    """Initialise the layers that own `keys` again, from seed 0, as their class does. In place."""
    foreign: Any = model
    with drawing(0), torch.no_grad():
        for name in sorted({key.rpartition(".")[0] for key in keys}):
            layer = model.get_submodule(name)
            for parameter in layer.parameters():
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            foreign._init_weights(layer)


def trained_whole(
    keys: Iterable[str], prefix: str, fresh: Iterable[str], classes: Iterable[str]
) -> list[str]:
    """The layers that every adapter of a classifier trains and saves whole.

    The new ones, and those that give the classes; each with all of its part of the head, as PEFT
    wraps it. PEFT wraps any layer whose name ends in such a name, so these are included.

    keys: of all weights. prefix: of the backbone's. classes: keys of the layers that give classes.
    """
    inside = f"{prefix}."

    def top_of(key: str) -> str:
        names = key.split(".")
        return ".".join(names[: 2 if key.startswith(inside) else 1])

    whole = {top_of(key) for key in (*fresh, *classes)}
    outside = {top_of(key) for key in keys if not key.startswith(inside)}
    return sorted(whole | {name for name in outside if name.endswith(tuple(whole))})


def head_notices(config: Any, labels: list[str], fresh: list[str]) -> list[str]:
    """Notices on a head that is not the checkpoint's, whose config is given."""
    if not fresh:
        return []
    own, why = own_classes(config), "the checkpoint has no head for classes"
    if is_classifier(config) and (fault := fault_of_head(config)):
        why = f"the base's classification layer is not used, because {fault}"
        if other_problem(config):
            why += f"; problem_type is now {ONE_CLASS}"
    elif own is not None and own != labels:
        why = (
            f"the base's classes ({listed(own, SHOWN)}) are not those of the rows "
            f"({listed(labels, SHOWN)}), so its classification layer is not used"
        )
    return [f"{why}; new, trained and saved whole with the adapter: {listed(fresh)}"]


def _differ_along(a: tuple[int, ...], b: tuple[int, ...], axis: int) -> bool:
    """Whether two shapes differ along `axis` alone."""
    return len(a) == len(b) and all(
        m == n for i, (m, n) in enumerate(zip(a, b, strict=True)) if i != axis
    )
