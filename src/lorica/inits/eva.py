"""EVA: A from the principal components of a layer's inputs, and ranks where they explain most.

The rows of A are the leading right-singular vectors of the layer's inputs over some batches, from
an incremental decomposition; B is zero. Then ranks are distributed over all sites: the components
that explain the largest share of their own site's inputs get them, at most rho r per site. The
total rank and the scale of every site do not change. Paischer et al., "One Initialization to Rule
them All: Fine-tuning via Explained Variance Adaptation", 2024, arXiv:2410.07170 (its result tables
are unverified here).

Differences: the authors' code (ml-jku/EVA, a5ac24b) and PEFT's center the inputs; the text
decomposes them as they are, and so do we, which gives most sites other ranks. Two runs of
stories260K on Shakespeare reach 3.047 and 3.058 nats that way, 3.061 and 3.078 centered, 3.111 and
3.137 from kaiming. Training uses the inputs at label tokens only, as PEFT does: on Alpaca rows
(stories260K, 60 steps of 4 rows, rate 0.005) that gives 3.590, 3.920 and 3.756 on three splits, and
all tokens give 3.624, 3.916 and 3.750, which shows no difference. Every site keeps rank 1 at least.
Twice as many components as can be used are carried from batch to batch, because a truncated
decomposition loses some accuracy with each.

    N  tokens   I  in_features   R  rank of a site   K  components carried along
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from lorica.core.attach import use
from lorica.core.bank import LayerAdapters, adapted_layers, bank_of, spec_of
from lorica.core.bounds import Bounds
from lorica.core.initialization import Initialization, skip_initialization
from lorica.core.modes import in_mode
from lorica.core.site import Site
from lorica.errors import ConfigError, DataError, listed
from lorica.methods.lora import Lora, LoraAdapter

CHUNK = 1024  # rows per decomposition


@dataclass(frozen=True, kw_only=True)
class Eva(Initialization, name="eva"):
    needs_data: ClassVar[bool] = True
    rho: Annotated[float, Bounds(ge=1)] = 2.0
    """Largest rank of a site, divided by r; 1: every site keeps its rank."""
    tau: Annotated[float, Bounds(gt=0, le=1)] = 0.99
    """A site has converged if a batch leaves every component at a cosine above this; 1: use all
    batches."""

    def initial_factors(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        return torch.zeros(r, site.in_features), torch.zeros(site.out_features, r)


class Spectrum:
    """The leading right-singular vectors of rows that come batch by batch.

    max_rank: how many of them can be used. values: (K,) singular values. vectors: (K, I). energy:
    the sum of the squares of all rows. converged: the last batch changed no usable vector.
    """

    def __init__(self, max_rank: int):
        self.max_rank, self.energy, self.converged = max_rank, 0.0, False
        self.values, self.vectors = torch.empty(0), torch.empty(0, 0)

    def update(self, rows: Tensor, tau: float) -> None:
        """Update with rows (N, I); converged if the cosine of every usable vector stays above
        tau."""
        self.max_rank = min(self.max_rank, rows.shape[1])
        before = self.vectors[: self.max_rank]
        self.energy += rows.double().square().sum().item()
        for part in rows.float().split(CHUNK):
            known = self.values.unsqueeze(1) * self.vectors if len(self.values) else part[:0]
            _, values, vectors = torch.linalg.svd(torch.cat([known, part]), full_matrices=False)
            self.values, self.vectors = values[: 2 * self.max_rank], vectors[: 2 * self.max_rank]
        now = self.vectors[: self.max_rank]
        if len(now) == len(before) == self.max_rank:
            self.converged = bool(((now * before).sum(1).abs() > tau).all())

    def explained(self, n: int) -> list[float]:
        """The share of the energy that each of the first `n` vectors explains."""
        return [value**2 / (self.energy or 1.0) for value in self.values[:n].tolist()]


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], name: str = "default"
) -> dict[str, int]:
    """Complete adapter `name`, whose init is eva. In place, before the optimizer is made.

    batches: the keyword arguments of one forward call each, on the model's device. The model is
        run as ``model(**batch)``, without adapters and in eval mode. With `attention_mask` (B, T),
        positions with 0 are padding and do not count; a packed batch has none. With `labels`
        (B, T), only label tokens (not -100) count, as in PEFT; they are not passed to the model.
        No further batch is taken when every site has converged. With several processes, each
        must get the same batches.

    The adapters of the sites are replaced by modules with the new ranks, and the adapter's Spec is
    updated (rank_pattern, alpha_pattern). Returns: the rank of each site. Raises: ConfigError if
    the adapter is not initialized from data; DataError if the batches are too few for its ranks.
    """
    eva = _method_of(model, name).initialization
    if not isinstance(eva, Eva):
        raise ConfigError(
            f"adapter {name!r} is not initialized from data.",
            fix='use init="eva", or do not call calibrate',
        )
    sites = list(_lora_sites(model, name))
    max_ranks = {site.name: min(int(eva.rho * a.r), site.in_features) for site, _, a in sites}
    budget = sum(adapter.r for _, _, adapter in sites)
    recorder = InputRecorder(max_ranks, eva.tau)
    recording = recorder.attached([site for site, _, _ in sites])
    with in_mode(model, training=False), use(model), recording:
        for batch in batches:
            recorder.mask = mask_of(batch)
            model(**{key: value for key, value in batch.items() if key != "labels"})
            if recorder.have_converged():
                break
    spectra = recorder.spectra
    explained = {site: spectra[site].explained(n) for site, n in max_ranks.items()}
    ranks = distributed(explained, budget)
    resize(model, ranks, name)
    for site, _, adapter in _lora_sites(model, name):
        adapter.a.copy_(spectra[site.name].vectors[: adapter.r])
    return ranks


def distributed(explained: Mapping[str, list[float]], budget: int) -> dict[str, int]:
    """Ranks that sum to `budget`: one per site, and the rest where the next component explains
    most.

    explained: the shares of each site's components, largest first. Raises: DataError if there are
    fewer components than the budget.
    """
    n_components = sum(len(shares) for shares in explained.values())
    empty = [site for site, shares in explained.items() if not shares]
    if empty or n_components < budget:
        raise DataError(
            f"the batches give {n_components} components for the {budget} ranks of the adapter.",
            sites_without=listed(empty),
            fix="pass more or longer batches to calibrate, or lower r",
        )
    ranks = dict.fromkeys(explained, 1)
    rest = [(share, site) for site, shares in explained.items() for share in shares[1:]]
    rest.sort(key=lambda pair: -pair[0])  # stable: ties go in model order
    for _, site in rest[: budget - len(ranks)]:
        ranks[site] += 1
    return ranks


@torch.no_grad()
def resize(model: nn.Module, ranks: Mapping[str, int], name: str = "default") -> None:
    """Replace the adapters of `name` by uninitialized ones with these ranks by site. In place.

    Every site keeps its scale, and a site without a new rank its rank. The Spec's rank_pattern and
    alpha_pattern are updated.
    """
    bank, spec, method = bank_of(model), spec_of(model, name), _method_of(model, name)
    sites = list(_lora_sites(model, name))
    shared = method.share([site for site, _, _ in sites])
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    for site, layer_adapters, old in sorted(sites, key=lambda item: -len(item[0].name)):
        r = ranks.get(site.name, old.r)
        alpha = old.numerator if r == old.r else old.scale * method.divisor(r)
        with skip_initialization():
            new = method.for_site(r=r, alpha=alpha).build(site, shared)
        new.float().to(site.like.device).train(old.training)
        layer_adapters[name] = new.requires_grad_(name in bank.route.names)
        if r != method.r:
            rank_pattern[site.name] = r
        if r != method.r or alpha != method.numerator:
            alpha_pattern[site.name] = alpha
    targets = replace(spec.targets, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern)
    bank.specs[name] = replace(spec, targets=targets)


def restore_ranks(model: nn.Module, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Give adapter `name` the ranks of the tensors of a checkpoint. In place.

    state: adapter tensors by name, which load_adapter_state loads next. A resumed run calls this in
    place of `calibrate`, before its optimizer is made.
    """
    sites = {site.name for site, _, _ in _lora_sites(model, name)}
    resize(model, {s: len(state[f"{s}.a"]) for s in sites if f"{s}.a" in state}, name)


class InputRecorder:
    """Updates a Spectrum per site with the site's inputs while the model runs.

    max_ranks: how many vectors of each site can be used. mask: (B, T), the tokens that count; None:
    all. Sites with the same input tensor (query, key, value) share a Spectrum.
    """

    def __init__(self, max_ranks: Mapping[str, int], tau: float):
        self.tau = tau
        self.mask: Tensor | None = None
        largest = max(max_ranks.values())
        self.spectra = {site: Spectrum(largest) for site in max_ranks}
        self.last: tuple[str, Tensor] | None = None

    def have_converged(self) -> bool:
        return all(spectrum.converged for spectrum in self.spectra.values())

    @contextmanager
    def attached(self, sites: list[Site]) -> Iterator[None]:
        """Inside the block the inputs of `sites` are recorded."""
        handles = [s.module.register_forward_pre_hook(self.hook(s.name)) for s in sites]
        try:
            yield
        finally:
            self.last = None
            for handle in handles:
                handle.remove()

    def hook(self, site: str) -> Callable[[nn.Module, tuple], None]:
        def record(module: nn.Module, args: tuple) -> None:
            x = args[0]
            if self.last is not None and self.last[1] is x:
                self.spectra[site] = self.spectra[self.last[0]]
                return
            self.last = (site, x)
            if not self.spectra[site].converged:
                self.spectra[site].update(counted_rows(x, self.mask, site), self.tau)

        return record


def counted_rows(x: Tensor, mask: Tensor | None, site: str) -> Tensor:
    """The rows (N, I) of a layer's input at the tokens of `mask`.

    Raises: DataError if the input does not have the shape of the mask, or is not finite.
    """
    rows = x.reshape(-1, x.shape[-1])
    if mask is not None:
        if x.shape[:-1] not in (mask.shape, (mask.numel(),)):
            raise DataError(
                f"the input of {site} does not have the shape of attention_mask: its padding is "
                "unknown.",
                input=tuple(x.shape),
                attention_mask=tuple(mask.shape),
                fix="pass batches without padding to calibrate",
            )
        rows = rows[mask.flatten().to(rows.device)]
    if not rows.isfinite().all():
        raise DataError(f"the input of {site} is not finite.", fix="use dtype float32")
    return rows


def mask_of(batch: Mapping[str, Any]) -> Tensor | None:
    """The tokens of a batch that count, (B, T) bool; None: all do."""
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if labels is not None:
        learned = labels != -100
        mask = learned if mask is None else learned & mask.bool()
    if mask is None:
        return None
    if mask.ndim != 2:
        raise DataError(
            f"calibrate needs an attention_mask (B, T), and got one of shape {tuple(mask.shape)}.",
            fix="pass the mask of the tokens",
        )
    return None if mask.bool().all() else mask.bool()


def _method_of(model: nn.Module, name: str) -> Lora:
    method = spec_of(model, name).method
    if not isinstance(method, Lora):
        raise ConfigError(
            f"adapter {name!r} is a {method.name}, which is not initialized from data."
        )
    return method


def _lora_sites(model: nn.Module, name: str) -> Iterator[tuple[Site, LayerAdapters, LoraAdapter]]:
    """The sites of the adapter's method, in model order: (site, adapters of its layer, adapter)."""
    for _, module, layer_adapters in list(adapted_layers(model)):
        if name in layer_adapters and isinstance(adapter := layer_adapters[name], LoraAdapter):
            yield layer_adapters.as_site(module), layer_adapters, adapter
