"""The architectures that can be written as GGUF: names of their layers, and how weights differ.

Names and layouts as in llama.cpp of November 2026 (src/models, gguf's tensor names).

    I  in_features   O  out_features   H  heads   D  head size
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lorica.errors import BaseError, listed

ATTENTION = {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"} | {
    "self_attn.o_proj": "attn_output"
}
MLP = {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GEMMA_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
EMBEDDING, POSITIONS, HEAD = "token_embd", "position_embd", "output"
UNBIASED = {EMBEDDING, POSITIONS, HEAD}


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names and stores the layers of one kind of model.

    name: general.architecture. kind: the class of transformers. outer: layer -> tensor; inner:
    the same within a block, whose name begins with `blocks` and its number.
    biases: tensors of blocks that may have a bias; all_biased: every layer in blocks has one.
    permuted: rows of q and k are reordered, since llama.cpp rotates neighbouring numbers together
    and transformers those half a head apart. shifted_norms: 1 is added to the weights of norms.
    transposed: weights of linear layers stand as (I, O) in the checkpoint.
    """

    name: str
    kind: str
    inner: Mapping[str, str]
    outer: Mapping[str, str] = field(default_factory=lambda: OUTER)
    blocks: str = "model.layers."
    biases: frozenset[str] = frozenset({"attn_q", "attn_k", "attn_v"})
    all_biased: bool = False
    permuted: bool = False
    shifted_norms: bool = False
    transposed: bool = False

    def tensor_of(self, layer: str) -> str | None:
        """What llama.cpp calls a layer, without ".weight"; None: it has no such layer."""
        if layer in self.outer:
            return self.outer[layer]
        number, _, inside = layer.removeprefix(self.blocks).partition(".")
        if not layer.startswith(self.blocks) or not number.isdecimal() or inside not in self.inner:
            return None
        return f"blk.{number}.{self.inner[inside]}"

    def place_of(self, key: str) -> str | None:
        """The tensor that a weight or bias of a checkpoint becomes; None: there is none."""
        layer, _, kind = key.rpartition(".")
        tensor = self.tensor_of(layer)
        if tensor is None or kind not in ("weight", "bias"):
            return None
        biased = self.all_biased and tensor not in UNBIASED
        if kind == "bias" and not biased and tensor.rpartition(".")[2] not in self.biases:
            return None
        return f"{tensor}.{kind}"

    def weights(self, blocks: int, *, tied: bool) -> set[str]:
        """The keys that a checkpoint of so many blocks must have. tied: the head has no matrix."""
        layers = [f"{self.blocks}{i}.{inside}" for i in range(blocks) for inside in self.inner]
        layers += [layer for layer, tensor in self.outer.items() if not (tied and tensor == HEAD)]
        keys = {f"{layer}.weight" for layer in layers}
        if self.all_biased:
            keys |= {f"{la}.bias" for la in layers if self.place_of(f"{la}.bias") is not None}
        return keys

    def full_key(self, key: str) -> str:
        """A checkpoint's key with the prefix that GPT-2's own checkpoint leaves out."""
        whole = f"{self.blocks.partition('.')[0]}.{key}"
        return key if self.place_of(whole) is None else whole

    @property
    def embedding_key(self) -> str:
        return next(f"{layer}.weight" for layer, t in self.outer.items() if t == EMBEDDING)

    def stands_transposed(self, key: str) -> bool:
        """Whether a key is of a matrix that stands as (I, O) in the checkpoint."""
        return self.transposed and ".c_" in key and key.endswith(".weight")

    def heads_of(self, layer: str, config: Any) -> int | None:
        """How many heads the rows of a layer are reordered in; None: they stay as they are."""
        if not self.permuted:
            return None
        if layer.endswith(".self_attn.q_proj"):
            return config.num_attention_heads
        return config.num_key_value_heads if layer.endswith(".self_attn.k_proj") else None


GPT2 = Architecture(
    "gpt2",
    "GPT2LMHeadModel",
    {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    {
        "transformer.wte": EMBEDDING,
        "transformer.wpe": POSITIONS,
        "transformer.ln_f": "output_norm",
        "lm_head": HEAD,
    },
    blocks="transformer.h.",
    all_biased=True,
    transposed=True,
)
ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        {**ATTENTION, **MLP, **NORMS},
        biases=frozenset({*ATTENTION.values(), *MLP.values()}),
        permuted=True,
    ),
    "mistral": Architecture(
        "llama", "MistralForCausalLM", {**ATTENTION, **MLP, **NORMS}, permuted=True
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", {**ATTENTION, **MLP, **NORMS}),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {**ATTENTION, **MLP, **NORMS, **HEAD_NORMS}),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        {**ATTENTION, **MLP, **GEMMA_NORMS},
        {layer: tensor for layer, tensor in OUTER.items() if tensor != HEAD},
        shifted_norms=True,
    ),
    "gemma3_text": Architecture(
        "gemma3",
        "Gemma3ForCausalLM",
        {**ATTENTION, **MLP, **GEMMA_NORMS, **HEAD_NORMS},
        shifted_norms=True,
    ),
    "gpt2": GPT2,
}
"""By transformers' model_type."""


def architecture_of(config: Any, source: str) -> Architecture:
    """The architecture of a base. config: transformers'. source: of the base, for the message.

    Raises: BaseError if it cannot be written as GGUF.
    """
    known = ARCHITECTURES.get(config.model_type)
    kinds = list(config.architectures or [])
    if known is None or kinds not in ([], [known.kind]):
        raise BaseError(
            f"{source} is a {listed(kinds) if kinds else config.model_type}, which lorica does not "
            "write as GGUF.",
            known=listed((a.kind for a in ARCHITECTURES.values()), 10),
            fix="merge the adapter (lorica merge), and convert the merged model with llama.cpp's "
            "own convert_hf_to_gguf.py",
        )
    return known


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows (H * D, ...) of q or k in llama.cpp's order: of each head 0, D/2, 1, D/2 + 1, ..."""
    size = len(rows) // heads
    halves = rows.reshape(heads, 2, size // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)
