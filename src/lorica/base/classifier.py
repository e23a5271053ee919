"""Sequence classifiers: the classes that a base names, and which of its weights are fresh.

A checkpoint rarely has the head that rows need. What it lacks is fresh by design if the class
that wrote it lacks it too: BertForMaskedLM has no pooler, and no classifier of any depth. What
that class has and the files have not is a hole. So no list of names decides.

A classification layer is kept only if the checkpoint's classes are those of the rows, in that
order. Else it starts anew, also where its shape would fit.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lorica.core.draws import drawing
from lorica.data.classes import class_names_fault
from lorica.errors import BaseError, listed

KIND = "ForSequenceClassification"
ONE_CLASS = "single_label_classification"
SHOWN = 6


@dataclass(frozen=True)
class Head:
    """The classification head on a checkpoint.

    fresh: keys of weights that start from seed 0. lost, misshaped: what must be refused.
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
    problem = getattr(config, "problem_type", None)
    return None if problem in (None, ONE_CLASS) else str(problem)


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
    """What a config calls the outputs of a classifier, in their order."""
    names: dict[int, str] = config.id2label or {}
    return ["" if (name := names.get(i)) is None else str(name) for i in range(config.num_labels)]


def names_of(model: Any) -> list[str] | None:
    """The names that a model's config gives its classes; None: it is no classifier, or has none."""
    config = getattr(model, "config", None)
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
    """What stands over a checkpoint's `config` in a classifier of `labels`, one for each row."""
    named = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    return named | ({"problem_type": ONE_CLASS} if other_problem(config) else {})


def inspect(model: nn.Module, config: Any, info: Mapping[str, Any], labels: list[str]) -> Head:
    """Part what is fresh from what is lost. In place: fresh weights that a file had start anew.

    config: the checkpoint's own. info: what transformers says of missing and misshaped weights.
    """
    shape_of = {key: tuple(there) for key, there, _ in info["mismatched_keys"]}
    missing = {str(key) for key in info["missing_keys"]} - set(shape_of)
    expected = designed(config) if missing else set[str]()
    prefix = str(getattr(model, "base_model_prefix", ""))
    lost = {k for k in missing if is_hole(k, prefix, expected)}
    axes, kept = class_axes(model), own_classes(config) == labels
    sizes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    misshaped = [
        f"{key} is {there}, not {sizes.get(key)}"
        for key, there in sorted(shape_of.items())
        if kept or key not in axes or not _alike(there, sizes[key], axes[key])
    ]
    if not kept:
        renew(model, [key for key in axes if key not in missing and key not in shape_of])
    fresh = sorted({*(() if kept else axes), *(missing - lost)})
    return Head(fresh, sorted(lost), misshaped, trained_whole(sizes, prefix, fresh, axes))


def designed(config: Any) -> set[str] | None:
    """The weights that the class named in a checkpoint's config has; None: it is not known."""
    import transformers

    for name in config.architectures or ():
        kind = getattr(transformers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            with torch.device("meta"):
                return {key for key, _ in kind(config).named_parameters(remove_duplicate=False)}
    return None


def is_hole(key: str, prefix: str, expected: Collection[str] | None) -> bool:
    """A missing weight is one that the checkpoint should have.

    prefix: of the backbone's keys, which the classes of one architecture may write or leave out.
    expected: the keys of the checkpoint's own class; None: everything inside of the backbone.
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
    for more in (0, 1):
        other = type(config).from_dict(config.to_dict() | {"id2label": None, "label2id": None})
        other.num_labels = config.num_labels + more
        with torch.device("meta"):
            shapes.append({k: p.shape for k, p in foreign(other).named_parameters()})
    few, many = shapes
    return {
        key: next(i for i, (a, b) in enumerate(zip(shape, many[key], strict=True)) if a != b)
        for key, shape in few.items()
        if shape != many[key]
    }


def renew(model: nn.Module, keys: Iterable[str]) -> None:
    """Start the layers that own `keys` anew, from seed 0, as their author does. In place."""
    foreign: Any = model
    with drawing(0), torch.no_grad():
        for name in sorted({key.rpartition(".")[0] for key in keys}):
            layer = model.get_submodule(name)
            for own in layer.parameters():
                own._is_hf_initialized = False  # type: ignore[attr-defined]
            foreign._init_weights(layer)


def trained_whole(
    keys: Iterable[str], prefix: str, fresh: Iterable[str], classes: Iterable[str]
) -> list[str]:
    """The layers that every adapter of a classifier trains and saves whole.

    Those that are fresh, and those that give the classes; each with all of its part of the head,
    as PEFT wraps it. PEFT takes any layer whose name ends in such a name: they come along.

    keys: of all weights. prefix: of the backbone's. classes: keys of the layers that give classes.
    """
    inside = f"{prefix}."

    def part(key: str) -> str:
        names = key.split(".")
        return ".".join(names[: 2 if key.startswith(inside) else 1])

    whole = {part(key) for key in (*fresh, *classes)}
    outside = {part(key) for key in keys if not key.startswith(inside)}
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


def _alike(there: tuple[int, ...], here: tuple[int, ...], axis: int) -> bool:
    """Two shapes differ along `axis` alone."""
    return len(there) == len(here) and all(
        a == b for i, (a, b) in enumerate(zip(there, here, strict=True)) if i != axis
    )
