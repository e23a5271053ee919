"""Which sites are adapted, and with which rank: as in PEFT, but every entry must count.

A target that selects nothing, an exclusion that excludes nothing or a pattern that changes nothing
is a typing error, and is refused.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from torch import nn

from lorica.core.patterns import check_pattern
from lorica.core.site import Site, sites_of
from lorica.core.site_names import block_of, lies_in, matching, names
from lorica.core.unadapted import describe_module, refuse_unsupported, unsupported_layers
from lorica.errors import TargetError, closest, listed

EVERY = (None, "all-linear", "all")
"""Values of target_modules that name no layer: layers that cannot be adapted are left out."""
EXPERTS = "experts"
"""The value of target_parameters that means every fused weight of experts."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where an adapter goes. Sets, tuples and single values are converted to lists."""

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
    target_parameters: str | Sequence[str] | None = None
    """"experts": every fused weight of experts; or name endings of them, as in PEFT; None: experts
    are not adapted."""
    modules_to_save: Sequence[str] = ()
    """Layers that are trained and saved whole (a classifier head, norms)."""
    trainable_token_indices: Sequence[int] = ()
    """Ids of tokens whose embeddings are trained, and no others."""

    def __post_init__(self):
        saved, stacks = self.modules_to_save, self.target_parameters
        lists = {
            "target_modules": _as_list(self.target_modules),
            "exclude_modules": _as_list(self.exclude_modules),
            "target_parameters": [stacks]
            if isinstance(stacks, str) and stacks != EXPERTS
            else _as_list(stacks),
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
    sites, chosen, unmatched = _search(model, targets, kinds, choose)
    if unmatched or not chosen:
        raise _selects_nothing(model, sites, unmatched or [("target_modules", "")])
    return chosen


def check_experts(targets: Targets, method: str, kinds: tuple[str, ...]) -> None:
    """Raises: TargetError if experts are targets of a method that is not defined on them."""
    if targets.target_parameters and "expert" not in kinds:
        raise TargetError(
            f"target_parameters names weights of experts, on which {method} is not defined.",
            fix="leave target_parameters out, or use method lora or dora",
        )


def left_out(
    model: nn.Module, targets: Targets, kinds: tuple[str, ...], choose: Choose
) -> str | None:
    """A notice on layers that "all-linear" and the like leave out; None: there are none."""
    if targets.target_modules not in EVERY:
        return None
    reasons = _unsupported(choose(sites_of(model, kinds)), kinds)
    if not reasons:
        return None
    layers = listed((f"{name} {reason}" for name, reason in reasons.items()), 2)
    return f"{len(reasons)} layers are not adapted: {layers}"


def also_excluded(exclude: str | Sequence[str] | None, names: list[str]) -> str | list[str]:
    """exclude_modules plus the layers of these whole names."""
    if isinstance(exclude, str) and not re.fullmatch(r"[\w.]+", exclude):
        return "|".join([f"(?:{exclude})", *map(re.escape, names)])
    before = [exclude] if isinstance(exclude, str) else exclude or []
    return [*before, *names]


def without_dead(
    model: nn.Module, targets: Targets, kinds: tuple[str, ...]
) -> tuple[Targets, list[str]]:
    """`targets` without the entries that select nothing, and a notice for each.

    Only for files of tools that ignore such entries: their sound files have some.
    """
    _, _, unmatched = _search(model, targets, kinds, lambda sites: sites)
    changed: dict[str, Any] = {}
    for key in dict.fromkeys(key for key, _ in unmatched):
        entries, dead = asdict(targets)[key], {entry for k, entry in unmatched if k == key}
        match entries:
            case dict():
                changed[key] = {e: value for e, value in entries.items() if e not in dead}
            case list():
                changed[key] = [e for e in entries if str(e) not in dead]
            case _ if key == "exclude_modules":
                changed[key] = None
    notices = [f"{key} {entry!r} selects nothing here and is ignored" for key, entry in unmatched]
    return replace(targets, **changed), notices


def _search(
    model: nn.Module, targets: Targets, kinds: tuple[str, ...], choose: Choose
) -> tuple[list[Site], list[Site], list[tuple[str, str]]]:
    """(sites that could be chosen, chosen sites, (setting, entry) of those that select nothing)."""
    saved = [s.name for s in saved_sites(model, targets.modules_to_save)]
    every = sites_of(model, kinds)
    sites = [s for s in every if s.kind != "expert" and s.name not in saved]
    experts = [s for s in every if s.kind == "expert" and s.name.rpartition(".")[0] not in saved]
    unmatched: list[tuple[str, str]] = []
    if targets.target_modules is None:
        chosen = choose(sites)
    elif targets.target_modules == "all-linear":
        chosen = [s for s in sites if s.kind == "linear" and not s.is_head]
    elif targets.target_modules == "all":
        chosen = sites
    else:
        chosen = _matching(sites, "target_modules", targets.target_modules, unmatched)
    if (entries := targets.target_parameters) in (EXPERTS, [EXPERTS]):
        chosen = [s for s in every if s in chosen or s in experts]
        unmatched += [] if experts else [("target_parameters", EXPERTS)]
    elif entries is not None:
        stacks = _matching(experts, "target_parameters", list(entries), unmatched)
        chosen = [s for s in every if s in chosen or s in stacks]
    if targets.exclude_modules is not None:
        out = _matching(chosen, "exclude_modules", targets.exclude_modules, unmatched)
        chosen = [s for s in chosen if s not in out]
    unsupported = _unsupported(chosen, kinds)
    if targets.target_modules not in EVERY:
        refuse_unsupported(unsupported)
    chosen = [s for s in chosen if s.name not in unsupported]
    if targets.layers_to_transform is not None:
        known = {block_of(s.name) for s in chosen}
        unmatched += [
            ("layers_to_transform", str(i)) for i in targets.layers_to_transform if i not in known
        ]
        chosen = [s for s in chosen if block_of(s.name) in targets.layers_to_transform]
    patterns = {"rank_pattern": targets.rank_pattern, "alpha_pattern": targets.alpha_pattern}
    for key, own in patterns.items():
        for pattern in own:
            check_pattern(key, pattern, [s.name for s in chosen])
            if not any(names(pattern, s.name) for s in chosen):
                unmatched.append((key, pattern))
    return sites, chosen, unmatched


def _unsupported(sites: list[Site], kinds: tuple[str, ...]) -> dict[str, str]:
    """Layers that cannot be targets, and why. A method that trains layers of any kind whole does
    not act on their calls, and supports all."""
    return {} if "other" in kinds else unsupported_layers(sites)


def saved_sites(model: nn.Module, entries: Sequence[str]) -> list[Site]:
    """The layers that modules_to_save names: each entry, with all layers below it."""
    sites = sites_of(model, ("linear", "embedding", "other"))
    saved: dict[str, Site] = {}
    for entry in entries:
        matches = [s for s in sites if lies_in(s.name, entry)]
        if not matches:
            raise _selects_nothing(model, sites, [("modules_to_save", entry)])
        saved.update({s.name: s for s in matches})
    return list(saved.values())


def leaf_names(sites: list[Site], every: list[Site]) -> list[str]:
    """The shortest list of endings that selects exactly `sites` among `every`."""
    leaves = sorted({s.name.rpartition(".")[2] for s in sites})
    names = {s.name for s in sites}
    selected = {s.name for s in every if s.name.rpartition(".")[2] in leaves}
    return leaves if selected == names else [s.name for s in sites]


def _matching(
    sites: list[Site], key: str, entries: str | Sequence[str], unmatched: list[tuple[str, str]]
) -> list[Site]:
    """Sites that an entry names; entries that name none are added to `unmatched`. In place."""
    matches = matching(key, entries, [s.name for s in sites])
    unmatched += [(key, entry) for entry, own in matches.items() if not own]
    chosen = {name for own in matches.values() for name in own}
    return [s for s in sites if s.name in chosen]


def _selects_nothing(
    model: nn.Module, sites: list[Site], unmatched: list[tuple[str, str]]
) -> TargetError:
    key, entry = unmatched[0]
    if key == "target_parameters":
        return _selects_no_expert(model, entry)
    leaves = sorted({s.name.rpartition(".")[2] for s in sites})
    what = ", ".join(f"{k} {e!r}" for k, e in unmatched)
    blocks = sorted({b for s in sites if (b := block_of(s.name)) is not None})
    facts = {"closest": closest(entry, leaves), "known": listed(leaves, 12)}
    if (why := describe_module(model, entry)) is not None:
        facts = {"why": f"{why}, which cannot be adapted", **facts}
    if key == "layers_to_transform":
        facts = {"blocks": f"{blocks[0]} to {blocks[-1]}" if blocks else "none are numbered"}
    return TargetError(
        f"{what} selects none of the {len(sites)} layers of {type(model).__name__}.",
        **facts,
        fix='name layers of this model; target_modules="all-linear" selects all but the head',
    )


def _selects_no_expert(model: nn.Module, entry: str) -> TargetError:
    leaves = sorted({s.name.rpartition(".")[2] for s in sites_of(model, ("expert",))})
    return TargetError(
        f"target_parameters {entry!r} selects no fused weight of experts of "
        f"{type(model).__name__}.",
        closest=closest(entry, leaves),
        known=", ".join(leaves) or "none: the model has none whose axes it declares",
        fix='name one of these, or "experts" for all; layers are named in target_modules'
        if leaves
        else "leave target_parameters out; layers are named in target_modules",
    )
