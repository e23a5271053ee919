"""Models whose attention adapters cannot reach are refused, and stay unchanged."""

import pytest
import torch
from torch.nn import functional as F

import lorica
from lorica.core.attention import FRONT, with_adapters
from lorica.core.front import (
    check_prepending,
    layers,
)
from lorica.errors import TargetError
from tests.core.attention_models import GROUPED, SIZE, each, foreign, method, tiny
from tests.laws.bases import bits, same_bits


def test_attention_that_takes_no_such_mask_is_refused():
    q = torch.zeros(1, 1, 2, 4)
    attend = with_adapters(lambda *a, **k: (q, None), fronts=False)
    layer = tiny("Llama").model.layers[0].self_attn
    front = {0: (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))}
    assert attend(layer, q, q, q, None)[0].shape == q.shape
    with pytest.raises(TargetError, match="takes no keys and values in front") as error:
        attend(layer, q, q, q, None, **{FRONT: front})
    assert "sdpa" in error.value.fix


@pytest.mark.parametrize(
    "kind, config", [("FalconForCausalLM", "FalconConfig"), ("GPTJForCausalLM", "GPTJConfig")]
)
@each
def test_an_attention_of_its_own_is_refused(name, kind, config):
    model = foreign(
        kind,
        config,
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        rotary_dim=4,
    )
    before = bits(model)
    with pytest.raises(TargetError) as error:
        lorica.adapt(model, method(name))
    assert "lora" in error.value.fix
    assert same_bits(bits(model), before)


@each
def test_an_encoder_beside_a_decoder_is_refused(name):
    model = foreign(
        "T5ForConditionalGeneration",
        "T5Config",
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
    )
    with pytest.raises(TargetError):
        lorica.adapt(model, method(name))
    if name != "llama_adapter":
        with pytest.raises(TargetError, match="no single row"):
            layers(model.decoder)


def test_virtual_tokens_that_would_see_the_text_are_refused():
    sizes = {k: v for k, v in SIZE.items() if "token_id" not in k}
    model = foreign("BertForMaskedLM", "BertConfig", **sizes)
    with pytest.raises(TargetError, match="both directions") as error:
        lorica.adapt(model, method("prompt_tuning"))
    assert "prefix_tuning" in error.value.fix


def test_layers_that_carry_a_state_are_refused():
    """Tried: a decoder whose embeddings reach over to the next token, and counted: a hybrid."""
    model = tiny("Llama")
    check_prepending(model.model)
    mlp = model.model.layers[0].mlp
    mlp.register_forward_hook(lambda m, a, y: y + 0.5 * F.pad(y, (0, 0, 1, -1)))
    with pytest.raises(TargetError, match="as if it were prepended"):
        check_prepending(model.model)
    hybrid = foreign(
        "Lfm2ForCausalLM",
        "Lfm2Config",
        **GROUPED,
        layer_types=["conv", "full_attention", "full_attention"],
    )
    with pytest.raises(TargetError, match="more from token to token") as error:
        lorica.adapt(hybrid, method("prompt_tuning"))
    assert error.value.facts["attention"] == "in 2 of 3 layers"


@pytest.mark.parametrize("name", ["prefix_tuning", "prompt_tuning"])
def test_a_model_without_its_head_has_no_decoder(name):
    with pytest.raises(TargetError, match="this one has none") as error:
        lorica.adapt(tiny("Llama").model, method(name))
    assert "AutoModelForCausalLM" in error.value.fix
