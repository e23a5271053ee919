"""Validate plain data as typed settings, and report every mistake in the same form.

pydantic validates in its strict JSON mode: `"8"` is not a number, `true` is not 1. The messages
are written here, from the types and limits of the fields.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from lorica.errors import LoricaError, closest
from lorica.recipe.settings import Mistake, Settings, Where
from lorica.recipe.values import (
    as_model,
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
"""The names of settings in other tools -> their names here."""


def setting_at(model: type[BaseModel], where: Where) -> tuple[Where, Any]:
    """(the part of `where` that is a setting of `model`, its type; None if there is no such)."""
    kind: Any = model
    for depth, key in enumerate(where):
        inner = as_model(kind)
        if inner is None:
            return where[:depth], kind
        info = inner.model_fields.get(key)
        if info is None:
            return where[: depth + 1], None
        kind = info.annotation
        if info.metadata:
            kind = Annotated[(kind, *info.metadata)]
    return where, kind


def mistakes_of(
    error: ValidationError, settings: Settings, model: type[BaseModel]
) -> list[Mistake]:
    """pydantic's errors as mistakes, one for each setting."""
    mistakes: dict[Where, Mistake] = {}
    for detail in error.errors(include_url=False):
        loc = tuple(str(part) for part in detail["loc"])
        where, kind = setting_at(model, loc)
        inner = loc[: len(where) + 1]
        path = inner if inner in settings.places else where
        name, value = ".".join(where), settings.get(where)
        item = as_model(get_args(kind)[0]) if get_origin(kind) is list else None
        if item and len(loc) > len(where):
            name, value, kind = _in_list(name, value, item, loc[len(where) :])
        if detail["type"] == "default_factory_not_called":
            continue
        if detail["type"] == "extra_forbidden" and item:
            what = f"{name} is not a setting; known: {', '.join(setting_names(item))}"
        elif detail["type"] == "extra_forbidden":
            what = unknown_setting(where, setting_names(model), settings)
        elif detail["type"] == "missing":
            what = f"{name} was not given; it must be {describe_type(kind)}"
        elif detail["type"] in ("value_error", "cross"):
            what = _message(detail, name)
        else:
            what = f"{name} is {format_value(value)}; it must be {describe_type(kind)}"
            what += nearest_choice(kind, value)
        key = (*where, what) if detail["type"] == "cross" else where
        mistakes.setdefault(key, Mistake(path, what))
    return list(mistakes.values())


def _in_list(name: str, values: Any, item: type[BaseModel], loc: Where) -> tuple[str, Any, Any]:
    """(name, value, type) of what is wrong in a list of mappings.

    name, values: of the list. item: of its members. loc: the number of a member, and its settings.
    """
    number, *keys = loc
    value = values[int(number)]
    _, kind = setting_at(item, tuple(keys)) if keys else ((), item)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return ".".join([f"{name}[{number}]", *keys]), value, kind


def _message(detail: Any, name: str) -> str:
    """The message of an error that a validator raised, with the name of the setting."""
    match detail.get("ctx", {}).get("error"):
        case LoricaError() as error:
            return one_line(error)
        case error:
            what = str(error) if error else detail["msg"]
            return what if not name or name.split(".")[-1] in what else f"{name}: {what}"


def one_line(error: LoricaError) -> str:
    """An error's message with its facts and its fix on one line, for a list of mistakes."""
    facts = [f"{key} {value}" for key, value in error.facts.items()]
    return "; ".join([error.what.rstrip("."), *facts, *([error.fix] if error.fix else [])])


def setting_names(model: type[BaseModel], before: str = "") -> list[str]:
    """The dotted names of the settings of a model, and of the models inside it."""
    settings = []
    for name, info in model.model_fields.items():
        settings.append(before + name)
        if (inner := as_model(info.annotation)) is not None:
            settings += setting_names(inner, f"{before}{name}.")
    return settings


def unknown_setting(where: Where, known: Iterable[str], settings: Settings) -> str:
    """The message for a setting that does not exist, with the closest one that does.

    known: the dotted names of all settings. One of another mapping is suggested only if its last
    part is the same: `data.max_length` for `max_length`.
    """
    key, name = where[-1].replace("-", "_"), ".".join(where)
    siblings, elsewhere = {}, {}
    for full in known:
        *parents, leaf = full.split(".")
        (siblings if tuple(parents) == where[:-1] else elsewhere)[leaf] = full
    near = elsewhere.get(key) or ALIASES.get(key)
    if near is None:
        near = siblings.get(closest(key, siblings).split(", ")[0])
    dash = "--" if settings.place(where).startswith("--") else ""
    suggestion = "(nothing similar)" if near is None else dash + near
    return f"{dash}{name} is not a setting; closest {suggestion}"


def validate_settings(model: type[M], settings: Settings) -> tuple[M | None, list[Mistake]]:
    """(settings as `model`, []), or (None, all mistakes).

    If single settings are wrong, validation runs again without them, so that the checks between
    the other settings report their mistakes too.
    """
    try:
        return _validated(model, settings.data), []
    except ValidationError as error:
        mistakes = mistakes_of(error, settings, model)
        others = Settings(json.loads(json.dumps(settings.data, default=str)))
        for detail in error.errors():
            _remove(others, setting_at(model, tuple(map(str, detail["loc"])))[0])
    try:
        _validated(model, others.data)
    except ValidationError as error:
        reported = {m.path for m in mistakes}
        mistakes += [m for m in mistakes_of(error, settings, model) if m.path not in reported]
    return None, mistakes


def _validated(model: type[M], data: dict[str, Any]) -> M:
    return model.model_validate_json(json.dumps(data, default=str), strict=True)


def _remove(settings: Settings, where: Where) -> None:
    match settings.get(where[:-1]):
        case dict() as data if where:
            data.pop(where[-1], None)


def member_as_dict(member: Named) -> dict[str, Any]:
    """A member of a family (a method) as the mapping that a recipe has for it."""
    return {"name": member.name, **dataclasses.asdict(cast(Any, member))}


def validate_member(
    family: type[N], settings: Settings, key: str
) -> tuple[N | None, list[Mistake]]:
    """(the member of a family of dataclasses that `settings.data[key]` describes, mistakes)."""
    given = settings.data[key]
    try:
        kind = family.named(given["name"])
    except LoricaError as error:
        return None, [Mistake((key, "name"), f"{key}.name: {one_line(error)}")]
    hints = get_type_hints(kind, include_extras=True)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cast(Any, kind)) if f.init}
    values, mistakes = validate_fields(kind.name, known, settings, key)
    try:
        return kind(**values), mistakes
    except LoricaError as error:
        name = next((n for n in values if f"{kind.name}.{n} " in error.what), "name")
        what = one_line(error).replace(f"{kind.name}.{name} ", f"{key}.{name} ")
        return None, [*mistakes, Mistake((key, name), what)]


def validate_fields(
    member: str, known: Mapping[str, Any], settings: Settings, key: str
) -> tuple[dict[str, Any], list[Mistake]]:
    """(the valid values of `settings.data[key]`, mistakes). known: name of a field -> its type."""
    mistakes, values = [], {}
    for name, value in settings.data[key].items():
        where, full = (key, name), f"{key}.{name}"
        if name not in known and name != "name":
            what = unknown_setting(where, [f"{key}.{n}" for n in known], settings)
            mistakes.append(Mistake(where, f"{what} (of {member})"))
        elif name != "name":
            value = parse_flag(known[name], value) if where in settings.texts else value
            try:
                values[name] = parse_strict(known[name], value)
            except ValidationError:
                what = f"{full} is {format_value(value)}; it must be {describe_type(known[name])}"
                what += nearest_choice(known[name], value)
                mistakes.append(Mistake(where, what))
    return values, mistakes
