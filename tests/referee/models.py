"""Small random models on which the package and PEFT are compared, and their logits."""

import torch
from torch import nn

from tests.laws.bases import IDS


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def near(got: torch.Tensor, want: torch.Tensor, exact: float) -> None:
    torch.testing.assert_close(got, want, atol=exact, rtol=exact)


def llama(**settings: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    kind = LlamaForSequenceClassification if "num_labels" in settings else LlamaForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(
            LlamaConfig(
                **{
                    "vocab_size": 64,
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "tie_word_embeddings": False,
                    "pad_token_id": 0,
                    "attention_bias": True,
                    **settings,
                }
            )
        ).eval()


def roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RobertaForSequenceClassification(
            RobertaConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=1,
                num_labels=3,
                num_attention_heads=2,
                intermediate_size=48,
                pad_token_id=0,
            )
        ).eval()


def classifier() -> nn.Module:
    return llama(num_labels=3)


def gemma(window: int = 8) -> nn.Module:
    """Its embedding multiplies what it reads by the square root of the width."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma3ForCausalLM(
            Gemma3TextConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                head_dim=16,
                num_attention_heads=2,
                num_key_value_heads=1,
                sliding_window=window,
            )
        ).eval()


QV = ["q_proj", "v_proj"]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
