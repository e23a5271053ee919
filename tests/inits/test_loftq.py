"""LoftQ: the start that corrects what quantisation did."""

import pytest
import torch
from torch import nn

import lorica
from lorica import Dora, Lora
from lorica.core.bank import adapted_layers
from lorica.core.merge import merged
from lorica.errors import ConfigError
from tests.laws.bases import IDS, Stack
from tests.methods.llama import llama, llama_nf4


def corrected(**settings) -> nn.Module:
    return lorica.adapt(llama_nf4(), Lora(**{"init": "loftq", **settings}))


@pytest.mark.parametrize("settings", [{}, {"alpha": 3}, {"use_rslora": True}], ids=str)
def test_loftq_is_the_best_correction_whatever_the_scale(settings):
    checked = 0
    for _, module, adapters in adapted_layers(corrected(r=4, **settings)):
        site, adapter = adapters.as_site(module), adapters["default"]
        weight, original = site.dense()[0], site.original()
        a, b = adapter.factors()
        before, after = (original - weight).norm(), (original - weight - b @ a).norm()
        best = torch.linalg.svdvals(original - weight)[4:].norm()
        torch.testing.assert_close(after, best, rtol=1e-4, atol=1e-6)
        assert after < before
        checked += 1
    assert checked == 35


def test_loftq_brings_the_model_nearer_to_the_original():
    with torch.no_grad():
        want = llama()(IDS).logits
        plain = (llama_nf4()(IDS).logits - want).norm()
        few = (corrected(r=8)(IDS).logits - want).norm()
        narrow = {"k_proj": 32, "v_proj": 32}
        whole = lorica.adapt(llama_nf4(), Lora(r=64, init="loftq"), rank_pattern=narrow)
        assert few < plain
        torch.testing.assert_close(whole(IDS).logits, want, atol=1e-3, rtol=1e-3)


def test_dora_keeps_the_size_of_a_corrected_weight():
    model, plain = (lorica.adapt(llama_nf4(), kind(r=4, init="loftq")) for kind in (Dora, Lora))
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, atol=1e-4, rtol=1e-4)


def test_loftq_needs_a_quantised_base_and_its_original():
    with pytest.raises(ConfigError, match="not quantised") as error:
        lorica.adapt(Stack(), Lora(r=4, init="loftq"))
    assert error.value.fix
    with pytest.raises(ConfigError, match=r"original weight of layers\.0\.up"):
        lorica.adapt(Stack(packed=True), Lora(r=4, init="loftq"))


# -- several rounds -----------------------------------------------------------------------------

TWO, FIVE = {"init": "loftq_iters_2"}, {"init": "loftq_iters_5"}


def errors(model: nn.Module) -> torch.Tensor:
    """||W - W'|| / ||W|| of every adapted layer, W' being what it computes with."""
    found = []
    for _, module, adapters in adapted_layers(model):
        site = adapters.as_site(module)
        original, now = site.original(), merged(site, adapters.acting_adapters())[0]
        found.append((original - now).norm() / original.norm())
    return torch.stack(found)


def test_every_round_brings_the_weights_nearer():
    found = [errors(corrected(r=8, **init)) for init in ({}, TWO, FIVE)]
    one, two, five = (error.mean().item() for error in found)
    assert one > two > five
    assert five < 0.95 * one
    assert (found[2] < found[0]).all()


def test_the_base_is_not_written_to_and_comes_back():
    base = llama_nf4()
    codes = {k: t.clone() for k, t in base.named_buffers()}
    with torch.no_grad():
        bare = base(IDS).logits
        model = lorica.adapt(base, Lora(r=4, **FIVE))
        adapted = model(IDS).logits
        assert not torch.equal(adapted, bare)
        with lorica.use(model):
            assert torch.equal(model(IDS).logits, bare)
        assert torch.equal(model(IDS).logits, adapted)
        lorica.detach(model)
        assert torch.equal(model(IDS).logits, bare)
    assert all(torch.equal(t, dict(base.named_buffers())[k]) for k, t in codes.items())


def test_gradients_go_through_the_codes_that_the_layer_computed_with():
    model = lorica.adapt(llama_nf4(), Lora(r=4, **FIVE), target_modules=["gate_proj"])
    (_, layer, adapters), *_ = adapted_layers(model)
    weight = merged(adapters.as_site(layer), adapters.acting_adapters())[0]
    x = torch.randn(3, layer.in_features, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, -1), atol=1e-5, rtol=1e-4)


def test_it_is_saved_loaded_and_merged(tmp_path):
    model = lorica.adapt(llama_nf4(), Lora(r=4, **FIVE))
    with torch.no_grad():
        for _, _, adapters in adapted_layers(model):
            adapters["default"].b.add_(0.01)
        want = model(IDS).logits
        lorica.save(model, tmp_path / "adapter")
        other = llama_nf4()
        lorica.load(other, tmp_path / "adapter")
        torch.testing.assert_close(other(IDS).logits, want, atol=1e-5, rtol=1e-5)
        lorica.merge(other)
        torch.testing.assert_close(other(IDS).logits, want, atol=1e-4, rtol=1e-4)


def test_what_several_rounds_cannot_do_is_refused(tmp_path):
    model = lorica.adapt(llama_nf4(), Lora(r=4, **TWO))
    with pytest.raises(ConfigError, match="rows of a batch"), lorica.mixed(model, ["default"]):
        pass
    with pytest.raises(ConfigError, match="one round"):
        Dora(r=4, **TWO)
    with pytest.raises(
        ConfigError, match=r"loftq.iters is 0; it must be a whole number \(at least 1\)"
    ):
        Lora(init="loftq_iters_0")
    lorica.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter/adapter_config.json").exists(), "PEFT would read it wrongly"
    for _, layer, _ in adapted_layers(model):
        layer.original_weight = None
    lorica.detach(model)
    lorica.load(model, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="float weights"):
        model(IDS)
