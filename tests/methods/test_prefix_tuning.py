"""Prefix tuning: the vectors of the specification, PEFT's numbers, starts, and runs."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F

import lorica
from lorica.core.attention import FRONT, with_adapters
from lorica.core.bank import attached
from lorica.core.draws import drawing
from lorica.core.state import adapter_state
from lorica.errors import ConfigError, MergeError, TargetError
from lorica.methods.prefix_tuning import PrefixAdapter, PrefixTuning
from lorica.training.config import TrainConfig
from tests.core.attention_models import tiny
from tests.laws.bases import IDS, gpt2, move
from tests.methods.llama import llama
from tests.training.rows import ROUNDING, farthest, interrupt, same, settings
from tests.training.rows import adapter as tensors_of


def adapted(model: nn.Module, seed: int = 0, **settings) -> tuple[nn.Module, PrefixAdapter]:
    lorica.adapt(model, PrefixTuning(**settings), seed=seed)
    (adapter,) = attached(model, "default").adapters.values()
    assert isinstance(adapter, PrefixAdapter)
    return model, adapter


def test_zeros_shrink_what_attention_gives():
    """Z / (Z + n), where Z is the sum of exp(score) over the tokens that a position sees."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = tiny("Llama")
    layer, attend = model.model.layers[1].self_attn, with_adapters(ALL_ATTENTION_FUNCTIONS["sdpa"])
    draw = torch.Generator().manual_seed(4)
    q = torch.randn(2, 4, 6, 8, generator=draw)
    k, v = (torch.randn(2, 2, 6, 8, generator=draw) for _ in range(2))
    zeros = {1: (torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))}
    base, _ = attend(layer, q, k, v, None, scaling=0.25)
    got, _ = attend(layer, q, k, v, None, scaling=0.25, **{FRONT: zeros})
    scores = q @ k.repeat_interleave(2, 1).mT * 0.25
    seen = torch.ones(6, 6).tril().bool()
    z = scores.exp().masked_fill(~seen, 0).sum(-1).transpose(1, 2).unsqueeze(-1)  # (B, T, H, 1)
    torch.testing.assert_close(got, base * z / (z + 3))
    assert (got - base).abs().max() > 0.1, "zeros are no start from the base"


@pytest.mark.parametrize("base", ["Llama", "GPT2", "Qwen3"])
def test_counts(base):
    def count(n: int, layers: int, heads: int, size: int) -> int:
        return n * layers * 2 * heads * size

    model, adapter = adapted(tiny(base), num_virtual_tokens=7)
    heads, size = {"Llama": (2, 8), "GPT2": (4, 8), "Qwen3": (2, 12)}[base]
    assert lorica.trainable_parameters(model).trainable == count(7, 3, heads, size)
    assert [keys.shape for keys, _ in adapter.front().values()] == [(heads, 7, size)] * 3
    assert count(20, 32, 32, 128) == 5_242_880  # of a model of 7B


@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2"])
def test_a_folded_table_gives_what_its_network_gives(make):
    model, made = adapted(make(), num_virtual_tokens=4, reparametrisation=9)
    move(model)
    plain, table = adapted(make(), num_virtual_tokens=4)
    table.e.data.copy_(made.table())
    assert torch.equal(plain(IDS).logits, model(IDS).logits)
    assert lorica.trainable_parameters(model).trainable == sum(p.numel() for p in made.parameters())
    width, features = table.e.shape[1], made.e.shape[1]
    assert sum(p.numel() for p in made.parameters()) == (
        4 * features + 9 * (features + 1) + width * (9 + 1)
    )


@pytest.mark.parametrize("base", ["Llama", "GPT2", "Mistral", "Qwen3"])
def test_a_prefix_of_tokens_is_the_cache_of_these_tokens(base):
    """Started from tokens it gives what the base gives behind them, before it is trained."""
    base = tiny(base, sliding_window=None) if base == "Mistral" else tiny(base)
    tokens, row = [5, 60, 7, 7], IDS[:, :6]
    whole = torch.cat([torch.tensor([tokens] * 2), row], 1)
    with torch.no_grad():
        want = base(whole).logits[:, 4:]
        model, _ = adapted(base, num_virtual_tokens=4, init="text", init_ids=tuple(tokens))
        torch.testing.assert_close(model(row).logits, want, atol=2e-5, rtol=1e-4)


def test_a_prefix_of_any_numbers_is_a_cache_filled_by_hand():
    from transformers import DynamicCache

    model, adapter = adapted(tiny("Llama"), num_virtual_tokens=4, init="random")
    cache = DynamicCache(config=model.config)
    for i, (keys, values) in adapter.front().items():
        cache.update(*(t.detach().expand(2, -1, -1, -1) for t in (keys, values)), i)
    with torch.no_grad():
        got = model(IDS).logits
        with lorica.use(model):
            want = model(IDS, past_key_values=cache).logits
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
def test_peft_computes_the_same_logits():
    peft = pytest.importorskip("peft")
    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 8}
    with drawing(1):
        theirs = peft.get_peft_model(llama(), peft.PrefixTuningConfig(**settings)).eval()
    model, adapter = adapted(llama(), num_virtual_tokens=8)
    adapter.e.data.copy_(theirs.get_prompt_embedding_to_save("default"))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=1e-4)


def test_starts():
    _, random = adapted(tiny("Llama"), init="random", num_virtual_tokens=40)
    assert abs(random.table().std() - 1) < 0.05
    _, zero = adapted(tiny("Llama"), init="zero")
    assert not zero.table().any()
    _, zero = adapted(tiny("Llama"), init="zero", reparametrisation=8)
    assert not zero.table().any()
    assert zero.e.any()
    _, words = adapted(tiny("Llama"))
    _, again = adapted(tiny("Llama"))
    _, other = adapted(tiny("Llama"), seed=1)
    assert torch.equal(words.table(), again.table())
    assert not torch.equal(words.table(), other.table())
    _, text = adapted(tiny("Llama"), init="text", init_ids=(9, 8), num_virtual_tokens=5)
    values = text.front()[0][1]  # of the first layer: they know no positions
    assert torch.equal(values[:, 0], values[:, 2])
    assert torch.equal(values[:, 1], values[:, 3])
    assert not torch.allclose(values[:, 0], values[:, 1])
    _, made = adapted(tiny("Llama"), reparametrisation=8)
    assert abs(made.e.std() - 1) < 0.1


@pytest.mark.parametrize("settings", [{}, {"reparametrisation": 8}], ids=str)
def test_only_the_prefix_learns_and_all_of_it(settings):
    model, adapter = adapted(tiny("Llama"), num_virtual_tokens=3, **settings)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert all(p.grad is None for n, p in model.named_parameters() if ".adapters." not in n)
    if not settings:
        assert (adapter.e.grad.abs() > 0).all(), "every number of the table acts"


def test_logits_and_loss_are_of_the_tokens_alone():
    model, _ = adapted(tiny("Llama"))
    out = model(IDS, labels=IDS)
    assert out.logits.shape == (2, 9, 96)
    want = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)
    assert PrefixTuning(num_virtual_tokens=7).positions() == 7


def test_settings_survive_a_recipe_and_a_manifest():
    kind = TypeAdapter(PrefixTuning)
    made = kind.validate_python({"init": "text", "init_ids": [3, 4], "num_virtual_tokens": 6})
    assert made == PrefixTuning(init="text", init_ids=(3, 4), num_virtual_tokens=6)
    config = TrainConfig(
        base="x",
        data={"path": "y"},
        output="z",
        method={"name": "prefix_tuning", "reparametrisation": 16},
    )
    assert config.build_method() == PrefixTuning(reparametrisation=16)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
        ({"num_virtual_tokens": 2.5}, "num_virtual_tokens is 2.5"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens is True"),
        ({"reparametrisation": 0}, "reparametrisation is 0"),
        ({"init": "zeros"}, "init is 'zeros'"),
        ({"init": "text"}, "init_ids"),
        ({"init_ids": (1, 2)}, "init_ids"),
        ({"init": "text", "init_ids": ()}, "init_ids"),
        ({"init": "vocabulary", "reparametrisation": 4}, "cannot start from given values"),
        (
            {"init": "text", "init_ids": (1,), "reparametrisation": 4},
            "cannot start from given values",
        ),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        PrefixTuning(**settings)
    assert error.value.fix


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"num_virtual_tokens": 64}, "the context has 64 tokens"),
        ({"init": "text", "init_ids": (3, 96)}, "not in the vocabulary"),
        ({"init": "text", "init_ids": (-1,)}, "not in the vocabulary"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_base(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        lorica.adapt(tiny("Llama"), PrefixTuning(**settings))
    assert error.value.fix


def test_it_cannot_be_merged_or_put_on_layers():
    model, _ = adapted(tiny("Llama"))
    with pytest.raises(MergeError, match="not affine"):
        lorica.merge(model)
    with pytest.raises(TargetError):
        lorica.adapt(tiny("Llama"), PrefixTuning(), target_modules=["q_proj"])


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"reparametrisation": 16}], ids=str)
def test_training_packed_padded_and_checkpointed_is_one_update(
    small_base, tmp_path, monkeypatch, changed
):
    plain = {
        "learning_rate": 2e-4,
        "method": {"name": "prefix_tuning", "num_virtual_tokens": 4, **changed},
    }
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


def test_a_run_that_stopped_goes_on_bit_by_bit(small_base, tmp_path, monkeypatch):
    changed = {"method": {"name": "prefix_tuning", "num_virtual_tokens": 4}, "save_steps": 3}
    whole = lorica.train(**settings(small_base, tmp_path / "a", **changed), show=False)
    half = settings(small_base, tmp_path / "b", **changed)
    interrupt(monkeypatch, 4, **half)
    again = lorica.train(resume=half["output"], show=False)
    assert same(tensors_of(whole.folder), tensors_of(again.folder))
    assert adapter_state(lorica.adapt(tiny("Llama"), PrefixTuning())).keys() == {"model.e"}
