"""Which sites are adapted, and with which rank: the words of PEFT, but every entry must count.

A target that selects nothing, an exclusion that excludes nothing, a pattern that changes
nothing: each is a typing error that other tools pass over, and is refused here.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from torch import nn

from lorica.core.patterns import check_pattern
from lorica.core.site import Site, sites_of
from lorica.core.unadapted import not_plain, refuse_named, what_it_is
from lorica.errors import TargetError, closest, listed

Value = TypeVar("Value")
EVERY = (None, "all-linear", "all")
"""Values of target_modules that name no layer: what cannot be adapted is left out."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where an adapter goes. Sets, tuples and single values are taken for the lists they mean."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    target_modules: str | Sequence[str] | None = None
    """Name endings of layers, or one; a regex on whole names; "all-linear" (all but the output
    head), or "all"; None: what the method asks for."""
    exclude_modules: str | Sequence[str] | None = None
    """Names, name endings or a regex of layers to leave out."""
    layers_to_transform: Sequence[int] | None = None
    """Only blocks with these numbers, counted from 0."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Name ending or regex -> r at these sites."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Name ending or regex -> alpha at these sites."""
    modules_to_save: Sequence[str] = ()
    """Layers that are trained and saved whole (a classifier head, norms)."""
    trainable_token_indices: Sequence[int] = ()
    """Ids of tokens whose embeddings are trained, and no others."""

    def __post_init__(self):
        saved = self.modules_to_save
        lists = {
            "target_modules": _as_list(self.target_modules),
            "exclude_modules": _as_list(self.exclude_modules),
            "layers_to_transform": _as_list(self.layers_to_transform),
            "modules_to_save": [saved] if isinstance(saved, str) else _as_list(saved),
            "trainable_token_indices": _as_list(self.trainable_token_indices),
        }
        for name, value in lists.items():
            object.__setattr__(self, name, value)


def _as_list(value: Any) -> Any:
    """A setting that may be one value, a set or a tuple, as a list; None and texts as they are."""
    match value:
        case None | str():
            return value
        case int():
            return [value]
        case set() | frozenset():
            return sorted(value)
        case Sequence():
            return list(value)
    return value


Choose = Callable[[list[Site]], list[Site]]


def select(
    model: nn.Module, targets: Targets, kinds: tuple[str, ...], choose: Choose
) -> list[Site]:
    """The sites that `targets` names among those of `kinds`, in model order.

    choose: what target_modules=None means. A layer of modules_to_save is trained whole, and is
    therefore no target.

    Raises: TargetError that lists every entry that selects nothing.
    """
    sites, chosen, wrong = _search(model, targets, kinds, choose)
    if wrong or not chosen:
        raise _selects_nothing(model, sites, wrong or [("target_modules", "")])
    return chosen


def left_out(
    model: nn.Module, targets: Targets, kinds: tuple[str, ...], choose: Choose
) -> str | None:
    """A named line on layers that "all-linear" and its like leave out; None: there are none."""
    if targets.target_modules not in EVERY:
        return None
    odd = _odd(choose(sites_of(model, kinds)), kinds)
    if not odd:
        return None
    return (
        f"{len(odd)} layers are not adapted: {listed((f'{n} {why}' for n, why in odd.items()), 2)}"
    )


def also_excluded(exclude: str | Sequence[str] | None, names: list[str]) -> str | list[str]:
    """exclude_modules with the layers of these whole names as well."""
    if isinstance(exclude, str) and not re.fullmatch(r"[\w.]+", exclude):
        return "|".join([f"(?:{exclude})", *map(re.escape, names)])
    before = [exclude] if isinstance(exclude, str) else exclude or []
    return [*before, *names]


def without_dead(
    model: nn.Module, targets: Targets, kinds: tuple[str, ...]
) -> tuple[Targets, list[str]]:
    """`targets` without the entries that select nothing, and a named line for each.

    Only for files of tools that pass over such entries: there they stand in sound files.
    """
    _, _, wrong = _search(model, targets, kinds, lambda sites: sites)
    kept: dict[str, Any] = {}
    for key in dict.fromkeys(key for key, _ in wrong):
        entries, dead = asdict(targets)[key], {entry for k, entry in wrong if k == key}
        if isinstance(entries, dict):
            kept[key] = {e: value for e, value in entries.items() if e not in dead}
        elif not isinstance(entries, str):
            kept[key] = [e for e in entries if str(e) not in dead]
        elif key == "exclude_modules":
            kept[key] = None
    lines = [f"{key} {entry!r} selects nothing here and is passed over" for key, entry in wrong]
    return replace(targets, **kept), lines


def _search(
    model: nn.Module, targets: Targets, kinds: tuple[str, ...], choose: Choose
) -> tuple[list[Site], list[Site], list[tuple[str, str]]]:
    """(sites that could be chosen, sites that are, (setting, entry) that select nothing)."""
    saved = [s.name for s in saved_sites(model, targets.modules_to_save)]
    sites = [s for s in sites_of(model, kinds) if s.name not in saved]
    wrong: list[tuple[str, str]] = []
    if targets.target_modules is None:
        chosen = choose(sites)
    elif targets.target_modules == "all-linear":
        chosen = [s for s in sites if s.kind == "linear" and not s.is_head]
    elif targets.target_modules == "all":
        chosen = sites
    else:
        chosen = _matching(sites, "target_modules", targets.target_modules, wrong)
    if targets.exclude_modules is not None:
        out = _matching(chosen, "exclude_modules", targets.exclude_modules, wrong)
        chosen = [s for s in chosen if s not in out]
    odd = _odd(chosen, kinds)
    if targets.target_modules not in EVERY:
        refuse_named(odd)
    chosen = [s for s in chosen if s.name not in odd]
    if targets.layers_to_transform is not None:
        known = {block_of(s.name) for s in chosen}
        wrong += [
            ("layers_to_transform", str(i)) for i in targets.layers_to_transform if i not in known
        ]
        chosen = [s for s in chosen if block_of(s.name) in targets.layers_to_transform]
    patterns = {"rank_pattern": targets.rank_pattern, "alpha_pattern": targets.alpha_pattern}
    for key, own in patterns.items():
        for pattern in own:
            check_pattern(key, pattern, [s.name for s in chosen])
            if not any(names(pattern, s.name) for s in chosen):
                wrong.append((key, pattern))
    return sites, chosen, wrong


def _odd(sites: list[Site], kinds: tuple[str, ...]) -> dict[str, str]:
    """Layers that are no targets, and why. A method that trains layers of any kind as they are
    does not go through their calls."""
    return {} if "other" in kinds else not_plain(sites)


def saved_sites(model: nn.Module, entries: Sequence[str]) -> list[Site]:
    """The layers that modules_to_save names: each entry, with all that lies below it."""
    every = sites_of(model, ("linear", "embedding", "other"))
    found: dict[str, Site] = {}
    for entry in entries:
        hits = [s for s in every if lies_in(s.name, entry)]
        if not hits:
            raise _selects_nothing(model, every, [("modules_to_save", entry)])
        found.update({s.name: s for s in hits})
    return list(found.values())


def lies_in(site: str, entry: str) -> bool:
    """A layer is one that an entry of modules_to_save names, or lies below one."""
    return re.fullmatch(rf"(.*\.)?{re.escape(entry)}(\..*)?", site) is not None


def names(pattern: str, site: str) -> bool:
    """A pattern of rank_pattern or alpha_pattern: a name ending or a regex, as PEFT reads it."""
    return re.match(rf"(.*\.)?({pattern})$", site) is not None


def first(patterns: Mapping[str, Value], site: str) -> Value | None:
    """The value of the first pattern that names `site`; None if none does."""
    return next((value for pattern, value in patterns.items() if names(pattern, site)), None)


def block_of(name: str) -> int | None:
    """The number of the block that a layer belongs to: the first number in its name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def leaf_names(sites: list[Site], every: list[Site]) -> list[str]:
    """The shortest list of endings that selects exactly `sites` among `every`."""
    leaves = sorted({s.name.rpartition(".")[2] for s in sites})
    wanted = {s.name for s in sites}
    hit = {s.name for s in every if s.name.rpartition(".")[2] in leaves}
    return leaves if hit == wanted else [s.name for s in sites]


def _matching(
    sites: list[Site], key: str, entries: str | Sequence[str], wrong: list[tuple[str, str]]
) -> list[Site]:
    """Sites that an entry names; entries that name none are added to `wrong`. In place.

    A text of letters, digits, "_" and "." alone is a name ending: as a regex it would name only
    what it names as an ending too.
    """
    if isinstance(entries, str) and re.fullmatch(r"[\w.]+", entries):
        entries = [entries]
    if isinstance(entries, str):
        check_pattern(key, entries, [s.name for s in sites])
        patterns = {entries: re.compile(entries)}
    else:
        patterns = {e: re.compile(rf"(.*\.)?{re.escape(e)}") for e in entries}
    found = {e: [s for s in sites if p.fullmatch(s.name)] for e, p in patterns.items()}
    wrong += [(key, entry) for entry, hits in found.items() if not hits]
    chosen = {s.name for hits in found.values() for s in hits}
    return [s for s in sites if s.name in chosen]


def _selects_nothing(
    model: nn.Module, sites: list[Site], wrong: list[tuple[str, str]]
) -> TargetError:
    leaves = sorted({s.name.rpartition(".")[2] for s in sites})
    key, entry = wrong[0]
    what = ", ".join(f"{k} {e!r}" for k, e in wrong)
    blocks = sorted({b for s in sites if (b := block_of(s.name)) is not None})
    facts = {"closest": closest(entry, leaves), "known": listed(leaves, 12)}
    if (why := what_it_is(model, entry)) is not None:
        facts = {"why": f"{why}, and no layer that is adapted", **facts}
    if key == "layers_to_transform":
        facts = {"blocks": f"{blocks[0]} to {blocks[-1]}" if blocks else "none are numbered"}
    return TargetError(
        f"{what} selects none of the {len(sites)} layers of {type(model).__name__}.",
        **facts,
        fix='name layers that are there; target_modules="all-linear" takes all but the head',
    )
