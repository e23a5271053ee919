"""The layers of known architectures, from the fields of config.json alone.

A family is a function from a config to the layers that transformers builds from it: their names,
kinds and sizes, in model order. A test compares each with the model of transformers. Where weights
are at hand, lorica.plan.headers finds the layers of other architectures in them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["linear", "embedding", "expert", "other", "attention", "decoder"]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class SiteShape:
    """A layer that a method may act on, as lorica.core.site has it, without its module.

    inputs, outputs: features; 0 for norms, attention and the decoder. layer: number of its block,
    counted from 0; None outside of the blocks. parameters: elements of its own tensors; those of
    experts are counted at the module that holds them. experts: how many matrices a stack has.
    """

    name: str
    kind: Kind
    inputs: int = 0
    outputs: int = 0
    layer: int | None = None
    parameters: int = 0
    is_head: bool = False
    experts: int = 0


def field(config: Config, *names: str, default: Any = None) -> Any:
    """The value of the first of these fields that the config has."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def linear(
    name: str, inputs: int, outputs: int, layer: int | None, *, bias: bool = False
) -> SiteShape:
    size = inputs * outputs + outputs * bias
    return SiteShape(name, "linear", inputs, outputs, layer, size)


def embedding(name: str, tokens: int, features: int) -> SiteShape:
    return SiteShape(name, "embedding", tokens, features, None, tokens * features)


def norm(name: str, size: int, layer: int | None) -> SiteShape:
    return SiteShape(name, "other", 0, 0, layer, size)


def head(config: Config, hidden: int) -> SiteShape:
    vocabulary = config["vocab_size"]
    return SiteShape(
        "lm_head", "linear", hidden, vocabulary, None, hidden * vocabulary, is_head=True
    )


@dataclass(frozen=True)
class LlamaLike:
    """What the decoders with rotary positions, gated MLPs and RMS norms differ in.

    qkv_bias, out_bias: of the projections; None: `attention_bias` of the config decides.
    head_norms: queries and keys have norms. sandwich: the outputs of attention and MLP have norms.
    head_size: if the config states none; None: hidden size / heads.
    fused: queries, keys and values are one layer, and so are gate and up. reads_mlp_bias: the
    config decides on biases of the MLP.
    """

    qkv_bias: bool | None = None
    out_bias: bool | None = None
    head_norms: bool = False
    sandwich: bool = False
    tied: bool = False
    head_size: int | None = None
    fused: bool = False
    reads_mlp_bias: bool = False

    def sites(self, config: Config) -> Iterator[SiteShape]:
        hidden = config["hidden_size"]
        yield SiteShape("model", "decoder")
        yield embedding("model.embed_tokens", config["vocab_size"], hidden)
        for layer in range(config["num_hidden_layers"]):
            yield from self._block(config, f"model.layers.{layer}", layer)
        yield norm("model.norm", hidden, None)
        yield head(config, hidden)

    def _block(self, config: Config, block: str, layer: int) -> Iterator[SiteShape]:
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        yield from self._attention(config, f"{block}.self_attn", layer)
        bias = self.reads_mlp_bias and bool(config.get("mlp_bias"))
        if self.fused:
            yield linear(f"{block}.mlp.gate_up_proj", hidden, 2 * inner, layer)
        else:
            yield linear(f"{block}.mlp.gate_proj", hidden, inner, layer, bias=bias)
            yield linear(f"{block}.mlp.up_proj", hidden, inner, layer, bias=bias)
        yield linear(f"{block}.mlp.down_proj", inner, hidden, layer, bias=bias)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if self.sandwich:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in norms:
            yield norm(f"{block}.{name}", hidden, layer)

    def _attention(self, config: Config, name: str, layer: int) -> Iterator[SiteShape]:
        hidden, (heads, kv_heads, size) = config["hidden_size"], self.heads(config)
        stated = bool(config.get("attention_bias"))
        qkv = stated if self.qkv_bias is None else self.qkv_bias
        out = stated if self.out_bias is None else self.out_bias
        yield SiteShape(name, "attention", layer=layer)
        if self.fused:
            yield linear(f"{name}.o_proj", heads * size, hidden, layer, bias=out)
            width = (heads + 2 * kv_heads) * size
            yield linear(f"{name}.qkv_proj", hidden, width, layer, bias=qkv)
            return
        yield linear(f"{name}.q_proj", hidden, heads * size, layer, bias=qkv)
        yield linear(f"{name}.k_proj", hidden, kv_heads * size, layer, bias=qkv)
        yield linear(f"{name}.v_proj", hidden, kv_heads * size, layer, bias=qkv)
        yield linear(f"{name}.o_proj", heads * size, hidden, layer, bias=out)
        if self.head_norms:
            yield norm(f"{name}.q_norm", size, layer)
            yield norm(f"{name}.k_norm", size, layer)

    def heads(self, config: Config) -> tuple[int, int, int]:
        """(heads, key heads, head size)."""
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        size = config.get("head_dim") or self.head_size or config["hidden_size"] // heads
        return heads, kv_heads, size


@dataclass(frozen=True)
class Gpt2:
    """Learned positions, LayerNorm with bias, one layer for queries, keys and values."""

    tied: bool = True

    def sites(self, config: Config) -> Iterator[SiteShape]:
        hidden = config["n_embd"]
        inner = config.get("n_inner") or 4 * hidden
        yield SiteShape("transformer", "decoder")
        yield embedding("transformer.wte", config["vocab_size"], hidden)
        yield embedding("transformer.wpe", config.get("n_positions") or 1024, hidden)
        for layer in range(config["n_layer"]):
            block = f"transformer.h.{layer}"
            yield norm(f"{block}.ln_1", 2 * hidden, layer)
            yield SiteShape(f"{block}.attn", "attention", layer=layer)
            yield linear(f"{block}.attn.c_attn", hidden, 3 * hidden, layer, bias=True)
            yield linear(f"{block}.attn.c_proj", hidden, hidden, layer, bias=True)
            yield norm(f"{block}.ln_2", 2 * hidden, layer)
            yield linear(f"{block}.mlp.c_fc", hidden, inner, layer, bias=True)
            yield linear(f"{block}.mlp.c_proj", inner, hidden, layer, bias=True)
        yield norm("transformer.ln_f", 2 * hidden, None)
        yield head(config, hidden)

    def heads(self, config: Config) -> tuple[int, int, int]:
        heads = config["n_head"]
        return heads, heads, config["n_embd"] // heads


Family = LlamaLike | Gpt2
FAMILIES: dict[str, Family] = {
    "llama": LlamaLike(reads_mlp_bias=True),
    "mistral": LlamaLike(qkv_bias=False, out_bias=False),
    "qwen2": LlamaLike(qkv_bias=True, out_bias=False),
    "qwen3": LlamaLike(head_norms=True),
    "gemma": LlamaLike(tied=True, head_size=256),
    "gemma2": LlamaLike(tied=True, head_size=256, sandwich=True),
    "gemma3_text": LlamaLike(tied=True, head_size=256, sandwich=True, head_norms=True),
    "phi3": LlamaLike(qkv_bias=False, out_bias=False, fused=True),
    "gpt2": Gpt2(),
}
"""model_type of a config.json -> its layers."""
