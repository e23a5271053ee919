"""EVA: begin A with the directions that a layer's inputs fill most, and give rank where it pays.

A's rows are the leading right-singular vectors of the layer's inputs over some batches, found by
an incremental decomposition; B is zero. The ranks of all sites are then dealt out anew: the
components that explain most of their own site's inputs win, at most rho r at a site; the sum of
all ranks stays, and so does every site's scale. Paischer et al., "One Initialization to Rule them
All: Fine-tuning via Explained Variance Adaptation", 2024, arXiv:2410.07170 (its result tables are
unverified here). The authors' code (ml-jku/EVA, a5ac24b) and PEFT's center the inputs; the text
decomposes them as they are, and so do we, which gives most sites other ranks. Two runs of
stories260K on Shakespeare reach 3.047 and 3.058 nats so, 3.061 and 3.078 centered, 3.111 and 3.137
from kaiming. Training looks at label tokens alone, as PEFT does: on Alpaca rows (stories260K, 60
steps of 4 rows, rate 0.005) that gives 3.590, 3.920 and 3.756 on three splits, and all tokens give
3.624, 3.916 and 3.750: no difference is shown, and the authors' choice is kept.
Ours: every site keeps rank 1 at least, and twice the components that can win are carried from
batch to batch, as a truncated decomposition loses a little at each.

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
from lorica.core.modes import in_mode
from lorica.core.site import Site
from lorica.core.start import Start, skip_starts
from lorica.errors import ConfigError, DataError, listed
from lorica.methods.lora import Lora, LoraAdapter

CHUNK = 1024  # rows that are decomposed at a time


@dataclass(frozen=True, kw_only=True)
class Eva(Start, name="eva"):
    needs_data: ClassVar[bool] = True
    rho: Annotated[float, Bounds(ge=1)] = 2.0
    """No site gets a rank above rho r; 1: every site keeps its own."""
    tau: Annotated[float, Bounds(gt=0, le=1)] = 0.99
    """A site is settled when a batch turns no component by more than this cosine; 1: use all."""

    def begin(self, site: Site, r: int, scale: float) -> tuple[Tensor, Tensor]:
        return torch.zeros(r, site.in_features), torch.zeros(site.out_features, r)


class Spectrum:
    """The leading right-singular vectors of rows that come batch by batch.

    wanted: how many may be asked for. values: (K,) singular values, vectors: (K, I). energy: the
    sum of the squares of all rows.
    """

    def __init__(self, wanted: int):
        self.wanted, self.energy, self.settled = wanted, 0.0, False
        self.values, self.vectors = torch.empty(0), torch.empty(0, 0)

    def add(self, rows: Tensor, tau: float) -> None:
        """Take in (N, I) rows; it is settled if they turn no wanted vector beyond `tau`."""
        self.wanted = min(self.wanted, rows.shape[1])
        before = self.vectors[: self.wanted]
        self.energy += rows.double().square().sum().item()
        for part in rows.float().split(CHUNK):
            known = self.values.unsqueeze(1) * self.vectors if len(self.values) else part[:0]
            _, values, vectors = torch.linalg.svd(torch.cat([known, part]), full_matrices=False)
            self.values, self.vectors = values[: 2 * self.wanted], vectors[: 2 * self.wanted]
        now = self.vectors[: self.wanted]
        if len(now) == len(before) == self.wanted:
            self.settled = bool(((now * before).sum(1).abs() > tau).all())

    def explained(self, most: int) -> list[float]:
        """What share of the rows' squared size each of the first `most` vectors has."""
        return [value**2 / (self.energy or 1.0) for value in self.values[:most].tolist()]


@torch.no_grad()
def calibrate(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], name: str = "default"
) -> dict[str, int]:
    """Complete adapter `name`, whose init is eva. In place, before the optimizer is made.

    batches: the keyword arguments of one forward call each, on the model's device: the model is
        run as ``model(**batch)``, as the bare base and in eval mode. Where `attention_mask`
        (B, T) is among them, positions with 0 are padding and are left out; rows laid end to end
        have none. Where `labels` (B, T) are, only label tokens count (not -100), as in PEFT, and
        the model is not given them. Once every site is settled no further batch is asked for.
        Under several processes each must be given the same batches.

    The adapters at the sites become new modules of the ranks found, and the adapter's Spec
    (rank_pattern, alpha_pattern) says so. Returns: the rank at each site. Raises: ConfigError if
    the adapter does not begin from data; DataError if the batches are too few for its ranks.
    """
    start = _method_of(model, name).start
    if not isinstance(start, Eva):
        raise ConfigError(
            f"adapter {name!r} does not begin from data.", fix='use init="eva", or do not calibrate'
        )
    places = list(_places(model, name))
    most = {site.name: min(int(start.rho * a.r), site.in_features) for site, _, a in places}
    budget = sum(adapter.r for _, _, adapter in places)
    watch = Watch(most, start.tau)
    with in_mode(model, training=False), use(model), watch.over([site for site, _, _ in places]):
        for batch in batches:
            watch.mask = mask_of(batch)
            model(**{key: value for key, value in batch.items() if key != "labels"})
            if watch.settled():
                break
    found = watch.spectra
    ranks = dealt({site: found[site].explained(n) for site, n in most.items()}, budget)
    resize(model, ranks, name)
    for site, _, adapter in _places(model, name):
        adapter.a.copy_(found[site.name].vectors[: adapter.r])
    return ranks


def dealt(explained: Mapping[str, list[float]], budget: int) -> dict[str, int]:
    """Ranks that sum to `budget`: one each, and the rest where the next component explains most.

    explained: the shares of each site's components, largest first. Raises: DataError if they are
    fewer than the budget.
    """
    have = sum(len(shares) for shares in explained.values())
    empty = [site for site, shares in explained.items() if not shares]
    if empty or have < budget:
        raise DataError(
            f"the batches give {have} directions for the {budget} ranks of the adapter.",
            without_any=listed(empty),
            fix="give more or longer batches to calibrate, or lower r",
        )
    ranks = dict.fromkeys(explained, 1)
    rest = [(share, site) for site, shares in explained.items() for share in shares[1:]]
    rest.sort(key=lambda pair: -pair[0])  # stable: model order where shares are equal
    for _, site in rest[: budget - len(ranks)]:
        ranks[site] += 1
    return ranks


@torch.no_grad()
def resize(model: nn.Module, ranks: Mapping[str, int], name: str = "default") -> None:
    """Build the adapters of `name` anew, without a start, with these ranks by site. In place.

    Every site keeps its scale, sites that are not named their rank. The Spec's rank_pattern and
    alpha_pattern say the same.
    """
    bank, spec, method = bank_of(model), spec_of(model, name), _method_of(model, name)
    places = list(_places(model, name))
    shared = method.share([site for site, _, _ in places])
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    for site, layer_adapters, old in sorted(places, key=lambda place: -len(place[0].name)):
        r = ranks.get(site.name, old.r)
        alpha = old.numerator if r == old.r else old.scale * method.divisor(r)
        with skip_starts():
            new = method.for_site(r=r, alpha=alpha).build(site, shared)
        new.float().to(site.like.device).train(old.training)
        layer_adapters[name] = new.requires_grad_(name in bank.route.names)
        if r != method.r:
            rank_pattern[site.name] = r
        if r != method.r or alpha != method.numerator:
            alpha_pattern[site.name] = alpha
    targets = replace(spec.targets, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern)
    bank.specs[name] = replace(spec, targets=targets)


def take_ranks(model: nn.Module, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Give adapter `name` the ranks that the tensors of a checkpoint have. In place.

    state: adapter tensors by name, as load_adapter_state takes them next. A run that goes on
    does this instead of calibrating, before its optimizer is made.
    """
    sites = {site.name for site, _, _ in _places(model, name)}
    resize(model, {s: len(state[f"{s}.a"]) for s in sites if f"{s}.a" in state}, name)


class Watch:
    """What the sites read while the model runs, taken in by one Spectrum each.

    most: how many vectors each may be asked for. mask: (B, T), the tokens that count; None: all.
    Sites that are given one and the same tensor (query, key, value) share one Spectrum.
    """

    def __init__(self, most: Mapping[str, int], tau: float):
        self.tau = tau
        self.mask: Tensor | None = None
        largest = max(most.values())
        self.spectra = {site: Spectrum(largest) for site in most}
        self.last: tuple[str, Tensor] | None = None

    def settled(self) -> bool:
        return all(spectrum.settled for spectrum in self.spectra.values())

    @contextmanager
    def over(self, sites: list[Site]) -> Iterator[None]:
        handles = [s.module.register_forward_pre_hook(self.hook(s.name)) for s in sites]
        try:
            yield
        finally:
            self.last = None
            for handle in handles:
                handle.remove()

    def hook(self, site: str) -> Callable[[nn.Module, tuple], None]:
        def read(module: nn.Module, args: tuple) -> None:
            x = args[0]
            if self.last is not None and self.last[1] is x:
                self.spectra[site] = self.spectra[self.last[0]]
                return
            self.last = (site, x)
            if not self.spectra[site].settled:
                self.spectra[site].add(counted(x, self.mask, site), self.tau)

        return read


def counted(x: Tensor, mask: Tensor | None, site: str) -> Tensor:
    """The rows (N, I) of a layer's input that are no padding.

    Raises: DataError if they cannot be told apart, or are not finite.
    """
    rows = x.reshape(-1, x.shape[-1])
    if mask is not None:
        if x.shape[:-1] not in (mask.shape, (mask.numel(),)):
            raise DataError(
                f"which inputs of {site} are padding cannot be told.",
                input=tuple(x.shape),
                attention_mask=tuple(mask.shape),
                fix="give calibrate batches without padding",
            )
        rows = rows[mask.flatten().to(rows.device)]
    if not rows.isfinite().all():
        raise DataError(f"{site} is given numbers that are not finite.", fix="use dtype float32")
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
            f"calibrate reads padding off an attention_mask (B, T), not {tuple(mask.shape)}.",
            fix="give it the mask of the tokens",
        )
    return None if mask.bool().all() else mask.bool()


def _method_of(model: nn.Module, name: str) -> Lora:
    method = spec_of(model, name).method
    if not isinstance(method, Lora):
        raise ConfigError(f"adapter {name!r} is a {method.name}, which begins without data.")
    return method


def _places(model: nn.Module, name: str) -> Iterator[tuple[Site, LayerAdapters, LoraAdapter]]:
    """Every site of the adapter's method, in model order."""
    for _, module, layer_adapters in list(adapted_layers(model)):
        if name in layer_adapters and isinstance(adapter := layer_adapters[name], LoraAdapter):
            yield layer_adapters.as_site(module), layer_adapters, adapter
