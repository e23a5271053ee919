"""Small random models of several attentions, and what the tests of attention share."""

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica.core.adapter import Method
from lorica.data.example import Example
from tests.laws.bases import move

SIZE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
MODELS = {
    "Llama": GROUPED,
    "GPT2": {k: v for k, v in SIZE.items() if k != "intermediate_size"},
    "GPTNeoX": SIZE,
    "Mistral": {**GROUPED, "sliding_window": 4},
    "Qwen3": {**GROUPED, "head_dim": 12},
    "Gemma2": {**GROUPED, "head_dim": 12, "sliding_window": 4},  # eager alone: scores are capped
    "GptOss": {
        **GROUPED,
        "head_dim": 12,
        "sliding_window": 4,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },  # eager alone: its heads have sinks
}
EAGER = ("Gemma2", "GptOss")
QUICK = ("Llama", "GPT2", "Gemma2")
"""Architectures that stand for the others; all are in the slow suite."""
METHODS = {
    "prefix_tuning": {"num_virtual_tokens": 5},
    "prompt_tuning": {"num_virtual_tokens": 5},
    "llama_adapter": {"adapter_len": 4},
}
IDS = torch.randint(1, 96, (2, 11), generator=torch.Generator().manual_seed(8))
each = pytest.mark.parametrize("name", METHODS)
everywhere = pytest.mark.parametrize(
    "name, base",
    [
        pytest.param(n, b, id=f"{n}-{b}", marks=[] if b in QUICK else [pytest.mark.slow])
        for n in METHODS
        for b in MODELS
    ],
)


def tiny(base: str, **settings: object) -> nn.Module:
    """A small model of an architecture, with random weights of a size that shows."""
    import transformers

    config = getattr(transformers, f"{base}Config")(**{**MODELS[base], **settings})
    if base in EAGER:
        config._attn_implementation = "eager"
    kind = f"{base}ForCausalLM" if base != "GPT2" else "GPT2LMHeadModel"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return model


def method(name: str, **settings: object) -> Method:
    return Method.named(name)(**{**METHODS[name], **settings})


def adapted(name: str, base: str) -> nn.Module:
    """With an adapter that has moved far enough to be seen."""
    return move(lorica.adapt(tiny(base), method(name)), size=0.3)


def logits(model: nn.Module, ids: Tensor, **options: object) -> Tensor:
    return model(ids, use_cache=False, **options).logits


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def grads(model: nn.Module) -> dict[str, Tensor]:
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert gradients
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())
    return {n: g.clone() for n, g in gradients.items()}


def rows(sizes: list[int]) -> list[Example]:
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(1, 96, (n,), generator=draw).tolist() for n in sizes]
    return [Example(i, [False] + [True] * (len(i) - 1), f"row {k}") for k, i in enumerate(ids)]


def foreign(kind: str, config: str, **settings: object) -> nn.Module:
    import transformers

    return getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
