"""The layers of a base that a method adapts, by the settings of a run and without the model.

The rules are those of lorica.core.targets, and of each method's own choice where target_modules is
not set. A test compares them with the layers that are really adapted.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lorica.core.site_names import block_of, first, lies_in, matching
from lorica.errors import TargetError, closest, listed
from lorica.plan.families import SiteShape
from lorica.plan.shapes import Shapes
from lorica.recipe.catalogue import method as catalogued
from lorica.training.settings import TrainSettings

SCALED_OUTPUT = re.compile(
    r"(.*\.)?(k_proj|v_proj|key|value|k|v|key_proj|value_proj|k_lin|v_lin|kv_proj|kv_b_proj"
    r"|c_attn|qkv|qkv_proj|query_key_value|Wqkv)"
)
SCALED_INPUT = re.compile(
    r"(.*\.)?(down_proj|fc2|fc_out|w2|wo|dense_4h_to_h|lin2|mlp\.c_proj|(?<!attention\.)output\.dense)"
)
ALL_EXPERTS = "experts"
"""target_parameters that names every fused weight of experts, as core.targets has it."""
INPUT = re.compile(r"(q|k|v|kv|qk|qkv|query|key|value|in)(_|$)", re.I)
"""Names of layers that do not write to the residual stream."""


def adapted_sites(
    shapes: Shapes, method: Mapping[str, Any], settings: TrainSettings
) -> list[SiteShape]:
    """The sites at which the method puts its adapters, in model order.

    Raises: TargetError if an entry selects nothing, ConfigError for an unknown method.
    """
    kinds = kinds_of(method)
    saved = {site.name for site in saved_sites(shapes, settings.modules_to_save)}
    every = [s for s in shapes.sites if s.kind in kinds and s.name not in saved]
    sites = [s for s in every if s.kind != "expert"]
    targets = settings.target_modules
    if targets is None:
        chosen = _own_choice(method, sites)
    elif targets == "all-linear":
        chosen = [s for s in sites if s.kind == "linear" and not s.is_head]
    elif targets == "all":
        chosen = sites
    else:
        chosen = _named(sites, "target_modules", targets)
    if settings.target_parameters is not None:
        experts = _experts(every, settings.target_parameters, method["name"])
        chosen = [s for s in every if s in chosen or s in experts]
    if settings.exclude_modules is not None:
        out = {s.name for s in _named(chosen, "exclude_modules", settings.exclude_modules)}
        chosen = [s for s in chosen if s.name not in out]
    if (blocks := settings.layers_to_transform) is not None:
        if unknown := [i for i in blocks if i not in {block_of(s.name) for s in chosen}]:
            raise TargetError(
                f"layers_to_transform names block {listed(unknown)}, and the base has "
                f"{shapes.layers} blocks, counted from 0.",
                fix=f"name blocks from 0 to {shapes.layers - 1}",
            )
        chosen = [s for s in chosen if block_of(s.name) in blocks]
    if not chosen:
        raise TargetError(
            f"no layer of {shapes.base} is left to adapt.", fix="leave exclude_modules out"
        )
    return chosen


def _experts(sites: list[SiteShape], entries: str | list[str], method: str) -> list[SiteShape]:
    """The stacks that target_parameters names. Raises: TargetError if an entry names none."""
    experts = [site for site in sites if site.kind == "expert"]
    if not experts:
        raise TargetError(
            f"target_parameters: this base has no fused weights of experts on which {method} is "
            "defined.",
            fix="leave target_parameters out, or use method lora or dora on a mixture of experts",
        )
    if entries in (ALL_EXPERTS, [ALL_EXPERTS]):
        return experts
    return _named(experts, "target_parameters", [entries] if isinstance(entries, str) else entries)


def kinds_of(method: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds of site that a method acts on."""
    if method["name"] == "llama_adapter" and method.get("v2"):
        return ("attention", "linear", "other")
    if method["name"] == "bottleneck" and method.get("train_norms"):
        return ("linear", "other")
    return catalogued(method["name"]).facts["kinds"]


def rank_at(site: SiteShape, method: Mapping[str, Any], settings: TrainSettings) -> int:
    """r of a method at a site: that of rank_pattern, or its own; 0 for a method without r."""
    return first(settings.rank_pattern, site.name) or int(method.get("r") or 0)


def saved_sites(shapes: Shapes, entries: Sequence[str]) -> list[SiteShape]:
    """The layers that modules_to_save names. Raises: TargetError if an entry names none."""
    layers = [s for s in shapes.sites if s.kind in ("linear", "embedding", "other")]
    for entry in entries:
        if not any(lies_in(site.name, entry) for site in layers):
            raise _selects_nothing(layers, "modules_to_save", entry)
    return [s for s in layers if any(lies_in(s.name, entry) for entry in entries)]


def scaled_at_input(sites: Sequence[SiteShape], method: Mapping[str, Any]) -> set[str]:
    """The sites of IA3 whose input is scaled, not their output."""
    if (entries := method.get("feedforward_modules")) is not None:
        return {s.name for s in sites if any(f".{s.name}".endswith(f".{e}") for e in entries)}
    if any(_is_known(site) for site in sites):
        return {s.name for s in sites if SCALED_INPUT.fullmatch(s.name)}
    return {s.name for s in sites if s.inputs > s.outputs}


def _own_choice(method: Mapping[str, Any], sites: list[SiteShape]) -> list[SiteShape]:
    """What target_modules: null means for the method."""
    linear = [s for s in sites if s.kind == "linear" and not s.is_head]
    match method["name"]:
        case "full" | "prompt_tuning" | "prefix_tuning":
            return sites
        case "ia3":
            return [s for s in linear if _is_known(s)] or linear
        case "bottleneck":
            written = _residual_writers([s for s in linear if s.layer is not None], method)
            return [s for s in sites if s.name in written or s.kind == "other"]
        case "llama_adapter":
            attentions = [s for s in sites if s.kind == "attention"]
            top = method.get("adapter_layers") or max(len(attentions) - 2, 1)
            names = {s.name for s in [*attentions[-top:], *linear]}
            return [s for s in sites if s.name in names or s.kind == "other"]
    return linear


def _is_known(site: SiteShape) -> bool:
    return bool(SCALED_OUTPUT.fullmatch(site.name) or SCALED_INPUT.fullmatch(site.name))


def _residual_writers(linear: Sequence[SiteShape], method: Mapping[str, Any]) -> set[str]:
    """The last linear layer of each sublayer of each block, if it writes the residual stream."""
    sizes = Counter(n for s in linear for n in (s.inputs, s.outputs))
    width = sizes.most_common(1)[0][0] if sizes else 0
    last: dict[tuple[int | None, str], str] = {}
    for site in linear:
        sublayer, _, leaf = re.sub(r"^.*?\.\d+\.", "", site.name).rpartition(".")
        if site.outputs == width and not INPUT.match(leaf):
            last[site.layer, sublayer] = site.name
    pfeiffer = method["placement"] == "pfeiffer"
    return {name for (_, part), name in last.items() if not pfeiffer or "att" not in part.lower()}


def _named(sites: list[SiteShape], key: str, entries: str | Sequence[str]) -> list[SiteShape]:
    """The sites that the entries of a setting name. Raises: TargetError if an entry names none."""
    selected = matching(key, entries, [site.name for site in sites])
    for entry, names in selected.items():
        if not names:
            raise _selects_nothing(sites, key, entry)
    names = {name for own in selected.values() for name in own}
    return [site for site in sites if site.name in names]


def _selects_nothing(sites: Sequence[SiteShape], key: str, entry: str) -> TargetError:
    leaves = sorted({site.name.rpartition(".")[2] for site in sites})
    return TargetError(
        f"{key} {entry!r} selects none of the {len(sites)} layers of this base.",
        closest=closest(entry, leaves),
        known=listed(leaves, 12),
        fix='name layers of this model; target_modules="all-linear" selects all but the head',
    )
