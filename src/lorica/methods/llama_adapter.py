"""LLaMA-Adapter: the top attention layers also attend to trained prompts, each head through a gate.

    o = softmax(s q K^T) V + g softmax(s q Kp^T) Vp,   Kp, Vp = keys and values of the prompts p

Zhang et al., "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention",
2023, arXiv:2303.16199, section 3. There are two softmaxes, and their sum is not renormalised. The
prompts have no position: they are not rotated, not masked, and never in the KV cache. p ~ N(0, 1)
and g = 0, one gate per head, so that the adapted model starts as the base, and only g has a
gradient in the first step. The authors' code takes tanh(g) and PEFT one gate for all heads; the
paper and its other implementations take g.

`v2` is Gao et al., 2023, arXiv:2304.15010, for text only: every norm is trained as well, and every
linear layer but the head gets a scale s and a bias b, y = s (W x + b0 + b). This is Lit-LLaMA's
form; the authors' code (llama_adapter_v2_chat65b at 521a09d) scales the input: W (s x) + b.

    B  rows   H  heads   K  key heads   T  tokens   D  head size   n  adapter_len   C  features
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorica.core.adapter import Adapter, BaseLayer, Method, Rates
from lorica.core.attention import ELSEWHERE, acting_alone, instrumented, project_qkv
from lorica.core.bounds import Bounds
from lorica.core.modules_to_save import ModuleCopies
from lorica.core.site import Site
from lorica.errors import ConfigError, TargetError
from lorica.methods.bottleneck import is_norm

Gate = Literal["none", "tanh"]


@dataclass(frozen=True, kw_only=True)
class LlamaAdapter(Method, name="llama_adapter"):
    kinds: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.16199"
    count: ClassVar[str] = "adapter_len * features + heads"
    rates: ClassVar[Rates] = (0.2, 0.005, 30.0)
    rate_source: ClassVar[str] = "PEFT's method comparison"
    to_lora: ClassVar[Literal["exact", "approximate", "never"]] = "never"
    adapter_len: Annotated[int, Bounds(ge=1)] = 10
    """Number of prompt vectors of each adapted attention layer."""
    adapter_layers: Annotated[int, Bounds(ge=1)] | None = None
    """How many attention layers get prompts, from the top; None: all but the lowest two."""
    gate_act: Gate = "none"
    """Activation of the gate."""
    v2: bool = False
    """Train the norms as well, and a scale and a bias for every linear layer."""

    def __post_init__(self):
        super().__post_init__()
        if self.v2:  # norms are other sites, and cannot differ from row to row
            object.__setattr__(self, "kinds", ("attention", "linear", "other"))
            object.__setattr__(self, "mixes", False)

    def choose(self, sites: list[Site]) -> list[Site]:
        layers = [site for site in sites if site.kind == "attention"]
        if not layers:
            raise TargetError(
                "this model has no attention layer that adapters can reach.", fix=ELSEWHERE
            )
        places = [site.module.layer_idx for site in layers]
        if len(set(places)) < len(places):
            raise TargetError(
                "this model has several attention modules per layer: its top ones are not clear.",
                fix="name the layers to adapt in target_modules",
            )
        top = self.adapter_layers or max(len(layers) - 2, 1)
        if top > len(layers):
            raise ConfigError(
                f"llama_adapter.adapter_layers is {top}, and the base has {len(layers)} of them.",
                fix="lower it, or leave it out",
            )
        prompted = {site.name for site in layers[-top:]}
        linear = {site.name for site in sites if site.kind == "linear" and not site.is_head}
        return [s for s in sites if s.name in prompted | linear or is_norm(s)]

    def share(self, sites: list[Site]) -> ModuleCopies:
        kinds = {site.kind for site in sites}
        layers = sum(site.kind == "attention" for site in sites)
        if self.adapter_layers is not None and layers != self.adapter_layers:
            raise ConfigError(
                f"llama_adapter.adapter_layers is {self.adapter_layers}, and the targets have "
                f"{layers} attention layers.",
                fix="leave out either adapter_layers, or target_modules and layers_to_transform",
            )
        if missing := set(self.kinds) - kinds:
            raise ConfigError(
                f"llama_adapter needs targets of kind {', '.join(sorted(missing))}, and has none.",
                fix="leave target_modules out, or name attention layers"
                + ", linear layers and norms" * self.v2,
            )
        return ModuleCopies()

    def build(self, site: Site, shared: Any) -> Adapter:
        if site.kind == "attention":
            return PromptedAttention(site, self)
        return ScaleAndBias(site) if site.kind == "linear" else shared.build(site)


class PromptedAttention(Adapter):
    affine = False

    def __init__(self, site: Site, method: LlamaAdapter):
        super().__init__()
        self.layer = (site.module,)  # in a tuple, so that it is no child module of the adapter
        foreign: Any = site.module
        with instrumented(foreign):
            features = foreign.config.hidden_size
            query, _, _ = project_qkv(foreign, site.like.new_zeros(1, features))  # (1, H, 1, D)
        self.p = nn.Parameter(torch.randn(method.adapter_len, features))
        self.g = nn.Parameter(torch.zeros(query.shape[1]))
        self.tanh = method.gate_act == "tanh"

    def move_to(self, site: Site) -> None:
        self.layer = (site.module,)

    def attend(self, query: Tensor, mixed: Tensor, scale: float) -> Tensor:
        with acting_alone(self.layer[0], self):
            _, key, value = project_qkv(self.layer[0], self.p.to(query.dtype))  # (1, K, n, D)
        groups = query.shape[1] // key.shape[1]
        key, value = (
            t.repeat_interleave(groups, dim=1).expand(len(query), -1, -1, -1) for t in (key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=scale)  # (B, H, T, D)
        gate = self.g.tanh() if self.tanh else self.g
        return mixed + gate.to(mixed.dtype).view(-1, 1, 1) * attended.to(mixed.dtype)


class ScaleAndBias(Adapter):
    """y = s (W x + b0 + b)."""

    def __init__(self, site: Site):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(site.out_features))
        self.bias = nn.Parameter(torch.zeros(site.out_features))

    def after(self, x: Tensor, y: Tensor, base: BaseLayer) -> Tensor:
        return (y + self.bias.to(y.dtype)) * self.scale.to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        shift = self.bias if bias is None else bias + self.bias
        return self.scale.unsqueeze(1) * weight, self.scale * shift
