"""Prompt tuning: n trained vectors stand before the embeddings of every row: [e ; emb(x)].

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021,
arXiv:2104.08691, section 2. With `reparametrisation` e = MLP(e0), as in Liu et al., "GPT
Understands, Too" (P-tuning), 2021, arXiv:2103.10385, without its LSTM. The vectors start from
real embeddings, or with their spread; N(0, 1), as PEFT draws them, is far from any embedding.
The paper's optimizer (Adafactor at 0.3) is quoted from memory, and unverified.

In a model that reads from left to right the vectors never see the text. So they are run through
the base once for a forward pass (once for a generation), and their keys and values stand before
every row: what prepending gives, tried on the base when it is adapted, with rows, masks and
labels as they were. Our own: a sliding window never loses sight of them.

    C  features   n  num_virtual_tokens
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, Method, Rates
from lorica.core.attention import alone
from lorica.core.bounds import Bounds
from lorica.core.front import check_prepending, embedded, embedding_of, heard, in_front, kept
from lorica.core.site import Site
from lorica.errors import ConfigError, TargetError

Start = Literal["vocabulary", "text", "random"]


@dataclass(frozen=True, kw_only=True)
class Virtual(Method):
    """What prompt tuning and prefix tuning have in common."""

    kinds: ClassVar[tuple[str, ...]] = ("decoder",)
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "never"
    starts_as_base: ClassVar[bool] = False
    num_virtual_tokens: Annotated[int, Bounds(ge=1)] = 20
    """Vectors in front of every row; so many positions of the context are theirs."""
    init_ids: tuple[int, ...] | None = None
    """Token ids that init "text" begins with, repeated or cut to num_virtual_tokens."""
    reparametrisation: Annotated[int, Bounds(ge=1)] | None = None
    """Width of a network that makes what stands in front while it is trained; None: none does."""
    init: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.init == "text") != bool(self.init_ids):
            raise ConfigError(
                f'{self.name}: init "text" and init_ids, the ids of its tokens, need one another.',
                init=self.init,
                init_ids=self.init_ids,
                fix="give both, or neither",
            )

    @property
    def rate_factor(self) -> float:
        return 0.1 if self.reparametrisation else 1.0  # the network moves all of it at once

    def choose(self, sites: list[Site]) -> list[Site]:
        if not sites:
            raise TargetError(
                f"{self.name} acts on the decoder of a transformers model, and this has none.",
                fix="load the model with its head (AutoModelForCausalLM), or choose lora",
            )
        return sites

    def positions(self) -> int:
        return self.num_virtual_tokens

    def vectors(self, decoder: nn.Module, init: str) -> Tensor:
        """The virtual tokens as they start, (n, C) float32. Raises: ConfigError, TargetError."""
        n, table, config = self.num_virtual_tokens, embedding_of(decoder), decoder.config
        most = getattr(config, "max_position_embeddings", None) or n + 1
        if n >= most:
            raise ConfigError(
                f"{self.name}.num_virtual_tokens is {n}, and the base's context {most} tokens.",
                fix="take fewer",
            )
        ids = torch.randint(table.in_features, (n,))
        if init == "text":
            ids = torch.tensor([*(self.init_ids or ())] * n)[:n]
        if not 0 <= ids.min() <= ids.max() < table.in_features:
            raise ConfigError(
                f"{self.name}.init_ids are ids of the vocabulary.",
                vocabulary=f"0 to {table.in_features - 1}",
                given=f"{ids.min()} to {ids.max()}",
                fix="make them with the tokenizer of this base",
            )
        found = embedded(table, ids)
        if init == "random":
            found = found.std() * torch.randn(found.shape).to(found)
        return found


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Virtual, name="prompt_tuning"):
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    count: ClassVar[str] = "num_virtual_tokens * features"
    rates: ClassVar[Rates] = (0.3, 0.001, 50.0)
    rate_source: ClassVar[str] = "PEFT's method comparison"
    init: Start = "vocabulary"
    """Embeddings of tokens drawn at random, those of init_ids, or N(0, 1) times their spread."""

    def build(self, site: Site, shared: Any) -> "PromptAdapter":
        return PromptAdapter(site, self)


class PromptAdapter(Adapter):
    affine = False

    def __init__(self, site: Site, method: PromptTuning):
        super().__init__()
        check_prepending(site.module)
        self.e = nn.Parameter(method.vectors(site.module, method.init))
        features, width = self.e.shape[1], method.reparametrisation
        self.mlp = (
            None
            if width is None
            else nn.Sequential(
                nn.Linear(features, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, features),
            )
        )

    def prompt(self) -> Tensor:
        """The vectors that stand before every row, (n, C): what is left of the network when it
        is dropped."""
        return self.e if self.mlp is None else self.mlp(self.e)

    def enter(self, decoder: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
        with alone(decoder, self):
            front = kept(options, id(self), lambda: heard(decoder, self.prompt(), options))
        return in_front(decoder, options, front)
