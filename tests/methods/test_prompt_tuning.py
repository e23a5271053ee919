"""Prompt tuning: it is prepending, the vectors of the specification, PEFT's numbers, starts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lorica
from lorica.core.bank import attached
from lorica.core.draws import drawing
from lorica.core.front import embedded, embedding_of
from lorica.errors import ConfigError, MergeError
from lorica.methods.prompt_tuning import PromptAdapter, PromptTuning
from tests.core.attention_models import MODELS, tiny
from tests.laws.bases import IDS, move
from tests.methods.llama import llama
from tests.training.rows import ROUNDING, farthest, settings
from tests.training.rows import adapter as tensors_of


def adapted(model: nn.Module, seed: int = 0, **settings) -> tuple[nn.Module, PromptAdapter]:
    lorica.adapt(model, PromptTuning(**settings), seed=seed)
    (adapter,) = attached(model, "default").adapters.values()
    assert isinstance(adapter, PromptAdapter)
    return model, adapter


def prepended(model: nn.Module, e: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The base on [e ; emb(x)], and what it gives for x."""
    words = model.base_model.get_input_embeddings()(ids)
    whole = torch.cat([e.to(words.dtype).expand(len(ids), -1, -1), words], 1)
    with lorica.use(model):
        return model(inputs_embeds=whole).logits[:, len(e) :]


@pytest.mark.parametrize("base", MODELS)
def test_it_is_prepending(base):
    wide = {"sliding_window": 64} if "sliding_window" in MODELS[base] else {}
    model, adapter = adapted(tiny(base, **wide), num_virtual_tokens=5)
    move(model, size=0.3)
    with torch.no_grad():
        want = prepended(model, adapter.prompt(), IDS)
        torch.testing.assert_close(model(IDS).logits, want, atol=2e-5, rtol=1e-4)


def test_a_sliding_window_does_not_lose_sight_of_it():
    """Behind a window's width prepended vectors are gone from the first layer; these are not."""
    model, adapter = adapted(tiny("Mistral", num_hidden_layers=1), num_virtual_tokens=3)
    with torch.no_grad():
        first = model(IDS).logits[:, -1]
        move(model, size=0.3)
        assert (model(IDS).logits[:, -1] - first).abs().max() > 1e-4
        far = prepended(model, adapter.prompt(), IDS)[:, -1]
        with lorica.use(model):
            places = torch.arange(3, 12).unsqueeze(0)
            torch.testing.assert_close(far, model(IDS, position_ids=places).logits[:, -1])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize("config", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_peft_computes_the_same_logits(config):
    peft = pytest.importorskip("peft")
    with drawing(1):
        settings = getattr(peft, config)(task_type="CAUSAL_LM", num_virtual_tokens=8)
        theirs = peft.get_peft_model(llama(), settings).eval()
    model, adapter = adapted(llama(), num_virtual_tokens=8)
    adapter.e.data.copy_(theirs.get_prompt_embedding_to_save("default"))
    with torch.no_grad():
        want = theirs(IDS).logits[:, 8:]
        torch.testing.assert_close(model(IDS).logits, want, atol=1e-4, rtol=1e-4)


def test_counts_and_gradients():
    """n * d numbers (81,920 for 20 tokens of a 7B model), and a gradient for them alone."""
    model, adapter = adapted(tiny("Llama"), num_virtual_tokens=7)
    assert lorica.trainable_parameters(model).trainable == 7 * 32
    model(IDS, labels=IDS).loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        "model.adapters.default.e"
    }
    assert (adapter.e.grad.abs() > 0).all()


def test_virtual_tokens_have_no_labels_and_no_logits():
    model, _ = adapted(tiny("Llama"))
    out = model(IDS, labels=IDS)
    assert out.logits.shape == (2, 9, 96)
    want = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)
    got = model.generate(
        IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=3,
        min_new_tokens=3,
        eos_token_id=None,
    )
    assert got.shape == (2, 12)
    assert torch.equal(got[:, :9], IDS)


def test_starts():
    model, words = adapted(tiny("Llama"), num_virtual_tokens=6)
    rows = model.model.embed_tokens.weight
    assert all((row == rows).all(1).any() for row in words.e)
    _, again = adapted(tiny("Llama"), num_virtual_tokens=6)
    _, other = adapted(tiny("Llama"), num_virtual_tokens=6, seed=1)
    assert torch.equal(words.e, again.e)
    assert not torch.equal(words.e, other.e)
    _, tiled = adapted(tiny("Llama"), num_virtual_tokens=5, init="text", init_ids=(4, 90))
    assert torch.equal(tiled.e, rows[[4, 90, 4, 90, 4]])
    _, cut = adapted(tiny("Llama"), num_virtual_tokens=2, init="text", init_ids=(4, 90, 3))
    assert torch.equal(cut.e, rows[[4, 90]])
    _, random = adapted(tiny("Llama"), num_virtual_tokens=50, init="random")
    assert abs(random.e.std() / rows.std() - 1) < 0.1, "not N(0, 1): the spread of embeddings"
    assert not any((row == rows).all(1).any() for row in random.e)


def test_embeddings_that_are_scaled_are_read_as_the_decoder_reads_them():
    """Gemma 3 multiplies inside its embedding, and Gemma 2 behind it."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {**MODELS["Gemma2"], "sliding_window": 64}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes)).eval()
    _, adapter = adapted(model, num_virtual_tokens=2, init="text", init_ids=(4, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            adapter.e.data, model.model.embed_tokens.weight[[4, 9]] * 32**0.5, rtol=2e-3, atol=1e-6
        )
        whole = torch.cat([torch.tensor([[4, 9]] * 2), IDS], 1)
        with lorica.use(model):
            want = model(whole).logits[:, 2:]
        torch.testing.assert_close(model(IDS).logits, want, atol=2e-5, rtol=1e-4)
    table = embedding_of(model.model)
    assert torch.equal(embedded(table, torch.tensor([4, 9])), adapter.e)


def test_a_network_makes_the_prompt_and_can_be_dropped():
    model, made = adapted(tiny("Llama"), num_virtual_tokens=4, reparametrisation=16)
    move(model)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in made.parameters())
    want = 4 * 32 + 16 * (32 + 1) + 16 * (16 + 1) + 32 * (16 + 1)
    assert lorica.trainable_parameters(model).trainable == want
    plain, folded = adapted(tiny("Llama"), num_virtual_tokens=4)
    folded.e.data.copy_(made.prompt())
    assert torch.equal(plain(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
        ({"init": "zero"}, "init is 'zero'"),
        ({"init": "vocab"}, "init is 'vocab'"),
        ({"init": "text"}, "init_ids"),
        ({"init_ids": (1,)}, "init_ids"),
        ({"reparametrisation": -1}, "reparametrisation is -1"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        PromptTuning(**settings)
    assert error.value.fix


def test_it_cannot_be_merged():
    model, _ = adapted(tiny("Llama"))
    with pytest.raises(MergeError, match="not affine"):
        lorica.merge(model)


@pytest.mark.slow
def test_training_packed_padded_and_checkpointed_is_one_update(small_base, tmp_path, monkeypatch):
    plain = {"learning_rate": 2e-4, "method": {"name": "prompt_tuning", "num_virtual_tokens": 4}}
    runs = {}
    for name, extra in (
        ("packed", {}),
        ("again", {"gradient_checkpointing": True}),
        ("micro", {"micro_batch_size": 2, "gradient_accumulation_steps": 4}),
    ):
        config = settings(small_base, tmp_path / name, **plain, **extra)
        runs[name] = tensors_of(lorica.train(**config, show=False).folder)
    monkeypatch.setattr("lorica.base.packing.why_not_packed", lambda model: "it was told so")
    config = settings(small_base, tmp_path / "padded", **plain)
    runs["padded"] = tensors_of(lorica.train(**config, show=False).folder)
    for name in ("again", "micro", "padded"):
        assert farthest(runs["packed"], runs[name]) < ROUNDING
