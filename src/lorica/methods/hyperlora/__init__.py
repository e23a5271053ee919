"""HyperLoRA: y = W x + s B(c) A(c) x, where a small network generates A and B from a condition c.

    z = mixer [enc(c) | depth(l) | type(m)]      u = out(z + res(z)) / d
    A = reshape(W_A u + b_A), (R, I)             B = reshape(W_B u + b_B), (O, R)

There is no single paper. From Charakorn et al., "Text-to-LoRA: Instant Transformer Adaption", 2025,
arXiv:2506.06105, and its code are: this form, a head for each type m of layer, heads that start
with W = 0 and the biases of a LoRA, so that every condition starts as the base, and the weight of
the L2 penalty. Related: Lv et al., "HyperLoRA", Findings of EMNLP 2024; HyperFormer, Mahabadi et
al., 2021, arXiv:2106.04489.

Differences: a bias for each layer rather than each type, so that with W = 0 it is LoRA; learned
vectors of tasks and pairs; the sizes; no dropout inside the network; the penalty covers all known
conditions rather than those of the batch, so that micro-batches give the gradient of the whole
batch; u is divided by d, so that W u changes about as fast as b.

In network.py is the network, in encoders.py enc, in penalty.py the penalty; conditions.py parses
conditions, and rows.py says which row has which.

    C conditions   B batch   T tokens   I in_features   O out_features   R r   d hidden
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

from torch import Tensor

from lorica.core.adapter import BaseLayer, Method, Rates
from lorica.core.bounds import Bounds, setting_error
from lorica.core.condition import Conditioned
from lorica.core.site import Site
from lorica.errors import ConfigError, MergeError, listed
from lorica.kernels.low_rank import low_rank, low_rank_rows
from lorica.methods.hyperlora.conditions import Kind, check_training_conditions
from lorica.methods.hyperlora.encoders import encoder
from lorica.methods.hyperlora.network import Network
from lorica.methods.hyperlora.penalty import SizePenalty

UNNAMED = ("default",)  # the condition if no task is named


@dataclass(frozen=True, kw_only=True)
class Hyperlora(Method, name="hyperlora"):
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    paper: ClassVar[str] = "Charakorn et al. 2025, arXiv:2506.06105"
    count: ClassVar[str] = (
        "(hidden + 1) * r * (I + O)"  # at most: hidden is shared by the layers of a type
    )
    rates: ClassVar[Rates] = (0.007, 0.0002, 1.0)
    rate_source: ClassVar[str] = "as lora"
    mixes: ClassVar[bool] = False  # the rows of a batch differ by their conditions instead
    r: Annotated[int, Bounds(ge=1)] = 8
    """Rank of the update. Parameters: r * (I + O) per layer, and those of the network once."""
    alpha: Annotated[float, Bounds(gt=0)] | None = None
    """Numerator of the scale s = alpha / r; None: 2 r."""
    dropout: Annotated[float, Bounds(ge=0, lt=1)] = 0.0
    """Probability of dropping an input coordinate of A, in [0, 1)."""
    condition: Kind = "task"
    """What a condition is. task: any name. pair: two languages, "en-fr"; pairs share languages.
    embedding: a list of numbers. text: encoded by the base."""
    conditions: tuple[str, ...] = ()
    """Known conditions; by default those of the training rows. Not for embedding."""
    width: Annotated[int, Bounds(ge=1)] | None = None
    """Length of an embedding, or for text the base's hidden size; None: taken from data and
    base."""
    latent: Annotated[int, Bounds(ge=4)] = 64
    """Width of the network; a multiple of 4."""
    hidden: Annotated[int, Bounds(ge=1)] = 16
    """Length d of the vector u. Parameters of one head, shared by the layers of one name and shape:
    hidden * r * (I + O)."""
    penalty: Annotated[float, Bounds(ge=0)] = 1e-3
    """Weight in the loss of the mean squares of A and B, summed over the types of layer."""

    def __post_init__(self):
        object.__setattr__(self, "conditions", tuple(self.conditions))
        super().__post_init__()
        if self.latent % 4:
            raise setting_error(self, "latent", "a multiple of 4")
        if len({*self.conditions}) < len(self.conditions) or "" in self.conditions:
            raise setting_error(self, "conditions", "a list of different names, none of them empty")
        if self.condition == "embedding" and self.conditions:
            raise setting_error(self, "conditions", "left out: any embedding can be used")

    @property
    def scale(self) -> float:
        return 2.0 if self.alpha is None else self.alpha / self.r

    def for_conditions(
        self, conditions: Sequence[str] | None, hidden_size: int | None = None
    ) -> Self:
        if not conditions:
            raise ConfigError(
                "hyperlora needs a condition for each row, and the training rows have none.",
                fix="name their column, data.columns: {condition: NAME}; or train lora",
            )
        known, width = check_training_conditions(self.condition, conditions, self.conditions)
        if self.condition == "text":
            width = hidden_size
        return replace(self, conditions=known, width=width or self.width)

    def share(self, sites: list[Site]) -> "Network":
        known = UNNAMED if self.condition == "task" and not self.conditions else self.conditions
        enc = encoder(self.condition, known, self.width, self.latent // 2)
        return Network(
            enc,
            sites,
            r=self.r,
            hidden=self.hidden,
            latent=self.latent,
            default=UNNAMED if known is UNNAMED else None,
        )

    def build(self, site: Site, shared: "Network") -> "HyperAdapter":
        if self.r != shared.r:
            raise ConfigError(
                f"hyperlora has one r for all layers: {site.name} cannot have r={self.r}.",
                fix="leave rank_pattern out",
            )
        return HyperAdapter(site, self, shared)

    def schedule(
        self, adapters: Mapping[str, "HyperAdapter"], total: int, epoch: int
    ) -> SizePenalty | None:
        if not self.penalty:
            return None
        places = [adapter.place for adapter in adapters.values()]
        network = next(iter(adapters.values())).network
        return SizePenalty(network, places, self.conditions, self.penalty)


class HyperAdapter(Conditioned):
    def __init__(self, site: Site, method: Hyperlora, network: Network):
        super().__init__()
        self.scale, self.p, self.network = method.scale, method.dropout, network
        self.known = method.conditions
        self.place = network.place(site)

    def condition(self, conditions: Sequence[str] | None, lengths: Sequence[int] | None) -> None:
        self.network.set(conditions, lengths)

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        if self.network.codes is None:
            raise ConfigError(
                "hyperlora generates its adapter from a condition, and none is set.",
                known=listed(self.known) if self.known else "any embedding",
                fix="lorica.core.condition.set_conditions(model, conditions), one for each row; "
                "--condition on the command line",
            )
        a, b = self.network.factors(self.network.codes, self.place)
        dropout = self.p if self.training else 0.0
        if self.network.rows is None:
            return low_rank(x, y, a[0], b[0], self.scale, dropout)
        return low_rank_rows(x, y, a, b, self.network.rows.spans(x), self.scale, dropout)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        codes = self.network.codes
        if codes is None or len(codes) > 1:
            return None
        a, b = self.network.factors(codes, self.place)
        return a[0], self.scale * b[0]

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        merged = super().merged(weight, bias)
        if merged is None:
            raise MergeError(
                "hyperlora has another weight for each condition.",
                fix="set one: set_conditions(model, [c]), or --condition",
            )
        return merged

    def texts_to_encode(self, conditions: Sequence[str]) -> list[str]:
        return self.network.enc.texts_to_encode([*self.known, *conditions])

    def store_texts(self, vectors: Mapping[str, Tensor]) -> list[str]:
        return self.network.enc.store_texts(vectors)
