"""Prompt tuning: n trained vectors precede the embeddings of every row: [e ; emb(x)].

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021, arXiv:2104.08691,
section 2. With `reparametrisation` e = MLP(e0), as in Liu et al., "GPT Understands, Too"
(P-tuning), 2021, arXiv:2103.10385, without its LSTM. The vectors start from real embeddings, or at
random with their standard deviation; PEFT's N(0, 1) is far from any embedding. The adapted model
does not start as the base. The paper's optimizer (Adafactor at 0.3) is quoted from memory, and
unverified.

In a causal model the vectors never see the text. They are therefore run through the base once per
forward pass (once per generation), and their keys and values precede every row, while rows, masks
and labels stay as they are. This equals prepending the vectors, which is tested on the base when it
is adapted. Our own: a sliding window always sees them.

    C  features   n  num_virtual_tokens
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorica.core.adapter import Adapter, Method, Rates
from lorica.core.attention import acting_alone
from lorica.core.bounds import Bounds
from lorica.core.front import (
    cached,
    check_prepending,
    embedded,
    embedding_of,
    keys_values_of,
    prepend_front,
)
from lorica.core.site import Site
from lorica.errors import ConfigError, TargetError

Start = Literal["vocabulary", "text", "random"]


@dataclass(frozen=True, kw_only=True)
class Virtual(Method):
    """Settings that prompt tuning and prefix tuning share."""

    kinds: ClassVar[tuple[str, ...]] = ("decoder",)
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "never"
    starts_as_base: ClassVar[bool] = False
    num_virtual_tokens: Annotated[int, Bounds(ge=1)] = 20
    """Number of virtual tokens before every row; they take up positions of the context."""
    init_ids: tuple[int, ...] | None = None
    """Token ids for init "text", repeated or cut to num_virtual_tokens."""
    reparametrisation: Annotated[int, Bounds(ge=1)] | None = None
    """Width of an MLP that computes the virtual tokens during training; None: train them
    directly."""
    init: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.init == "text") != bool(self.init_ids):
            raise ConfigError(
                f'{self.name}: init "text" needs init_ids, the ids of its tokens, and only then.',
                init=self.init,
                init_ids=self.init_ids,
                fix="give both, or neither",
            )

    @property
    def rate_factor(self) -> float:
        return (
            0.1 if self.reparametrisation else 1.0
        )  # a step of the network moves all virtual tokens

    def choose(self, sites: list[Site]) -> list[Site]:
        if not sites:
            raise TargetError(
                f"{self.name} needs a transformers model with a decoder, and this one has none.",
                fix="load the model with its head (AutoModelForCausalLM), or choose lora",
            )
        return sites

    def positions(self) -> int:
        return self.num_virtual_tokens

    def vectors(self, decoder: nn.Module, init: str) -> Tensor:
        """The initial virtual tokens, (n, C) float32.

        Raises: ConfigError if they do not fit into the context or init_ids are no token ids.
            TargetError if the decoder has no embedding of tokens.
        """
        n, table, config = self.num_virtual_tokens, embedding_of(decoder), decoder.config
        context = getattr(config, "max_position_embeddings", None)
        if context and n >= context:
            raise ConfigError(
                f"{self.name}.num_virtual_tokens is {n}: the context has {context} tokens.",
                fix="lower it",
            )
        ids = torch.randint(table.in_features, (n,))
        if init == "text":
            ids = torch.tensor([*(self.init_ids or ())] * n)[:n]
        if not 0 <= ids.min() <= ids.max() < table.in_features:
            raise ConfigError(
                f"{self.name}.init_ids has ids that are not in the vocabulary.",
                vocabulary=f"0 to {table.in_features - 1}",
                given=f"{ids.min()} to {ids.max()}",
                fix="tokenize the text with the tokenizer of this base",
            )
        vectors = embedded(table, ids)
        if init == "random":
            vectors = vectors.std() * torch.randn(vectors.shape).to(vectors)
        return vectors


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Virtual, name="prompt_tuning"):
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    count: ClassVar[str] = "num_virtual_tokens * features"
    rates: ClassVar[Rates] = (0.3, 0.001, 50.0)
    rate_source: ClassVar[str] = "PEFT's method comparison"
    init: Start = "vocabulary"
    """Initial vectors. vocabulary: embeddings of random tokens. text: those of init_ids. random:
    N(0, 1) times the standard deviation of the embeddings."""

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
        """The vectors before every row, (n, C); with an MLP, its outputs."""
        return self.e if self.mlp is None else self.mlp(self.e)

    def enter(self, decoder: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
        with acting_alone(decoder, self):
            front = cached(options, self, lambda: keys_values_of(decoder, self.prompt(), options))
        return prepend_front(decoder, options, front)
