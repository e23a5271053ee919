"""How far two adapters of one base are apart: by layer, and in what the model predicts."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.base.load import LoadedModel
from lorica.core.adapter import Adapter
from lorica.core.attach import use
from lorica.core.bank import attached, spec_of
from lorica.core.site import Site
from lorica.formats.adapter_file import read
from lorica.formats.attach import attach
from lorica.formats.low_rank import change_of
from lorica.formats.open_adapter import open_file
from lorica.formats.sum_updates import check_no_condition
from lorica.formats.verify import compare, logits_of, record

FIRST, SECOND = "default", "lorica_second"
SAME = 1e-5
"""Changes are the same up to rounding: the distance, as a share of the larger change."""


@dataclass(frozen=True)
class LayerDifference:
    """first, second: the Frobenius norms of the changes W' - W. distance: of one from the other,
    over the larger norm. cosine: of the changes as vectors; None where one is 0.
    """

    first: float
    second: float
    distance: float
    cosine: float | None


@dataclass(frozen=True)
class AdapterDifference:
    """layers: of those that both or one of them changes. others: sites that are no weight (prompts,
    gates), which only the logits compare. max_difference, kl: of the logits; see verify.py.
    same: every layer is the same up to rounding, and so are the logits.
    """

    first: str
    second: str
    methods: tuple[str, str]
    same: bool
    layers: dict[str, LayerDifference]
    others: list[str]
    max_difference: float
    kl: float
    effect: float
    tokens: int
    notices: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def difference(
    first: str | Path,
    second: str | Path,
    *,
    base: str | None = None,
    allow_base: str | None = None,
    probe: list[str] | None = None,
) -> AdapterDifference:
    """Compare two runs or adapters of one base.

    base: another place of the base. allow_base: see `lorica.load`. probe: texts for the logits,
    beside the built-in ones.

    Raises: FileError, BaseError if one cannot be read, or they have different bases; MergeError if
        one is another adapter for each condition.
    """
    opened = open_file(read(first), base=base, allow_base=allow_base)
    file, model = read(second), opened.model
    opened.notices += attach(model, file, SECOND, tokenizer=opened.tokenizer, allow_base=allow_base)
    layers, others = _layers(opened, str(first), str(second))
    recorded = record(opened, FIRST, probe)
    with use(model, SECOND):
        logits = compare(recorded, logits_of(opened, recorded.rows))
    close = logits.max_difference <= SAME * max(1.0, recorded.adapted.abs().max().item())
    return AdapterDifference(
        first=str(first),
        second=str(second),
        methods=(spec_of(model, FIRST).method.name, spec_of(model, SECOND).method.name),
        same=close and all(layer.distance <= SAME for layer in layers.values()),
        layers=layers,
        others=others,
        max_difference=logits.max_difference,
        kl=logits.kl,
        effect=logits.effect,
        tokens=logits.tokens,
        notices=list(opened.notices),
    )


def _layers(opened: LoadedModel, *sources: str) -> tuple[dict[str, LayerDifference], list[str]]:
    """The layers that have a weight which an adapter changes, and all other sites."""
    parts = [attached(opened.model, name) for name in (FIRST, SECOND)]
    for source, part in zip(sources, parts, strict=True):
        check_no_condition(source, list(part.every.values()))
    sites = {name: site for part in parts for name, site in part.sites.items()}
    layers, others = dict[str, LayerDifference](), list[str]()
    for name, site in sites.items():
        adapters = [part.every[name] for part in parts if name in part.every]
        if site.kind not in ("linear", "embedding", "expert") or not all(
            isinstance(a, Adapter) and a.affine for a in adapters
        ):
            others.append(name)
            continue
        changes = [_change(site, part.every.get(name)) for part in parts]
        layers[name] = _compared(*changes)
    return layers, others


def _change(site: Site, adapter: Any) -> Tensor:
    """W' - W (O, I), of experts (E, O, I), with the change of the bias as a last column."""
    stack = (site.experts,) if site.experts else ()
    if adapter is None:
        return torch.zeros(*stack, site.out_features, site.in_features + 1)
    delta, shift = change_of(site, adapter)
    shift = torch.zeros(delta.shape[:-1]) if shift is None else shift
    return torch.cat([delta, shift.unsqueeze(-1)], dim=-1)


def _compared(first: Tensor, second: Tensor) -> LayerDifference:
    one, other = float(first.norm()), float(second.norm())
    larger, apart = max(one, other), float((first - second).norm())
    cosine = float((first * second).sum()) / (one * other) if one and other else None
    return LayerDifference(one, other, apart / larger if larger else 0.0, cosine)
