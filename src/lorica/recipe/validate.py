"""From plain data to typed settings: every mistake is found, and told in one kind of sentence.

pydantic judges in its strict JSON mode (`"8"` is not a number, `true` is not 1); the sentences
are made here from the types and limits of the fields.
"""

import dataclasses
import json
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel, ValidationError

from lorica.errors import LoricaError, closest
from lorica.recipe.settings import Mistake, Settings, Where
from lorica.recipe.values import (
    describe_type,
    format_value,
    nearest_choice,
    parse_flag,
    parse_strict,
)
from lorica.registry import Named

M = TypeVar("M", bound=BaseModel)
N = TypeVar("N", bound=Named)

ALIASES = {
    "lr": "learning_rate",
    "rank": "method.r",
    "r": "method.r",
    "lora_r": "method.r",
    "alpha": "method.alpha",
    "dropout": "method.dropout",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "lora_target_modules": "target_modules",
    "model": "base",
    "base_model": "base",
    "dataset": "data.path",
    "datasets": "data.path",
    "max_seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "val_set_size": "data.validation",
    "batch_size": "micro_batch_size",
    "per_device_train_batch_size": "micro_batch_size",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "lr_scheduler_type": "schedule",
    "output_dir": "output",
    "bf16": "dtype",
}
"""What other tools call a setting -> what it is called here."""


def setting_at(model: type[BaseModel], where: Where) -> tuple[Where, Any]:
    """The part of `where` that names a setting of `model`, and the type that it must have."""
    kind: Any = model
    for depth, key in enumerate(where):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            info = kind.model_fields.get(key)
            if info is None:
                return where[: depth + 1], None
            kind = info.annotation
            if info.metadata:
                kind = Annotated[(kind, *info.metadata)]
        else:
            return where[:depth], kind
    return where, kind


def mistakes_of(
    error: ValidationError, settings: Settings, model: type[BaseModel]
) -> list[Mistake]:
    """pydantic's findings, one for each setting, in our words."""
    found: dict[Where, Mistake] = {}
    for detail in error.errors(include_url=False):
        loc = tuple(str(part) for part in detail["loc"])
        where, kind = setting_at(model, loc)
        inner = loc[: len(where) + 1]
        spot = inner if inner in settings.places else where
        name = ".".join(where)
        if detail["type"] == "default_factory_not_called":
            continue
        if detail["type"] == "extra_forbidden":
            what = unknown_setting(where, setting_names(model), settings)
        elif detail["type"] == "missing":
            what = f"{name} was not given; it must be {describe_type(kind)}"
        elif detail["type"] in ("value_error", "cross"):
            what = _told(detail, name)
        else:
            what = (
                f"{name} is {format_value(settings.get(where))}; it must be {describe_type(kind)}"
            )
            what += nearest_choice(kind, settings.get(where))
        found.setdefault(
            (*where, what) if detail["type"] == "cross" else where, Mistake(spot, what)
        )
    return list(found.values())


def _told(detail: Any, name: str) -> str:
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, LoricaError):
        return one_line(error)
    what = str(error) if error else detail["msg"]
    return what if not name or name.split(".")[-1] in what else f"{name}: {what}"


def one_line(error: LoricaError) -> str:
    """An error's sentence with its facts and its fix, for a list of mistakes."""
    facts = [f"{key} {value}" for key, value in error.facts.items()]
    return "; ".join([error.what.rstrip("."), *facts, *([error.fix] if error.fix else [])])


def setting_names(model: type[BaseModel], before: str = "") -> list[str]:
    """The settings of a model and of the models inside it, dotted."""
    found = []
    for name, info in model.model_fields.items():
        found.append(before + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += setting_names(info.annotation, f"{before}{name}.")
    return found


def unknown_setting(where: Where, known: Iterable[str], settings: Settings) -> str:
    """The sentence for a setting that does not exist, with the name that was meant.

    known: dotted names; those beside `where`, and those of other mappings, which are
    offered only when the last part is the same (`max_length` for `data.max_length`).
    """
    key, name = where[-1].replace("-", "_"), ".".join(where)
    beside, away = {}, {}
    for full in known:
        *parents, leaf = full.split(".")
        (beside if tuple(parents) == where[:-1] else away)[leaf] = full
    meant = [away.get(key) or ALIASES.get(key) or ""]
    if not meant[0]:
        meant = [beside[word] for word in closest(key, beside).split(", ")[:1] if word in beside]
    dash = "--" if settings.place(where).startswith("--") else ""
    near = ", ".join(dash + word for word in meant) or "(nothing similar)"
    return f"{dash}{name} is not a setting; closest {near}"


def validate_settings(model: type[M], settings: Settings) -> tuple[M | None, list[Mistake]]:
    """Settings as `model`; when something is wrong, None and all that is wrong.

    The checks between settings run also when single settings are wrong: those are left out,
    at their defaults, for a second look.
    """
    try:
        return _validated(model, settings.data), []
    except ValidationError as error:
        mistakes = mistakes_of(error, settings, model)
        second = json.loads(json.dumps(settings.data, default=str))
        for detail in error.errors():
            _drop(second, setting_at(model, tuple(map(str, detail["loc"])))[0])
    try:
        _validated(model, second)
    except ValidationError as error:
        told = {m.path for m in mistakes}
        mistakes += [m for m in mistakes_of(error, settings, model) if m.path not in told]
    return None, mistakes


def _validated(model: type[M], data: dict[str, Any]) -> M:
    return model.model_validate_json(json.dumps(data, default=str), strict=True)


def _drop(data: dict[str, Any], where: Where) -> None:
    for key in where[:-1]:
        data = data.get(key, {})
    if where and isinstance(data, dict):
        data.pop(where[-1], None)


def member_as_dict(member: Named) -> dict[str, Any]:
    """A member of a family as the mapping that describes it."""
    return {"name": member.name, **dataclasses.asdict(cast(Any, member))}


def validate_member(
    family: type[N], settings: Settings, key: str
) -> tuple[N | None, list[Mistake]]:
    """The member of a family of dataclasses (a method) that the mapping at `key` describes."""
    given = settings.data[key]
    try:
        kind = family.named(given["name"])
    except LoricaError as error:
        return None, [Mistake((key, "name"), f"{key}.name: {one_line(error)}")]
    hints = get_type_hints(kind, include_extras=True)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cast(Any, kind)) if f.init}
    mistakes, values = [], {}
    for name, value in given.items():
        where, full = (key, name), f"{key}.{name}"
        if name not in known and name != "name":
            what = unknown_setting(where, [f"{key}.{n}" for n in known], settings)
            mistakes.append(Mistake(where, f"{what} (of {kind.name})"))
        elif name != "name":
            value = parse_flag(known[name], value) if where in settings.texts else value
            try:
                values[name] = parse_strict(known[name], value)
            except ValidationError:
                what = f"{full} is {format_value(value)}; it must be {describe_type(known[name])}"
                what += nearest_choice(known[name], value)
                mistakes.append(Mistake(where, what))
    try:
        return kind(**values), mistakes
    except LoricaError as error:
        name = next((n for n in values if f"{kind.name}.{n} " in error.what), "name")
        told = one_line(error).replace(f"{kind.name}.{name} ", f"{key}.{name} ")
        return None, [*mistakes, Mistake((key, name), told)]
