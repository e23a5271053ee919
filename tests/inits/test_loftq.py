"""LoftQ: the start that corrects what quantisation did."""

import pytest
import torch
from torch import nn

import lorica
from lorica import Dora, Lora
from lorica.core.port import ports
from lorica.errors import ConfigError
from tests.laws.bases import IDS, Stack, stories, stories_nf4


def corrected(**settings) -> nn.Module:
    return lorica.adapt(stories_nf4(), Lora(init="loftq", **settings))


@pytest.mark.parametrize("settings", [{}, {"alpha": 3}, {"use_rslora": True}], ids=str)
def test_loftq_is_the_best_correction_whatever_the_scale(settings):
    checked = 0
    for name, module, port in ports(corrected(r=4, **settings)):
        site, adapter = port.site(name, module), port["default"]
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
        want = stories()(IDS).logits
        plain = (stories_nf4()(IDS).logits - want).norm()
        few = (corrected(r=8)(IDS).logits - want).norm()
        narrow = {"k_proj": 32, "v_proj": 32}
        whole = lorica.adapt(stories_nf4(), Lora(r=64, init="loftq"), rank_pattern=narrow)
        assert few < plain
        torch.testing.assert_close(whole(IDS).logits, want, atol=1e-3, rtol=1e-3)


def test_dora_keeps_the_size_of_a_corrected_weight():
    model, plain = (lorica.adapt(stories_nf4(), kind(r=4, init="loftq")) for kind in (Dora, Lora))
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, atol=1e-4, rtol=1e-4)


def test_loftq_needs_a_quantised_base_and_its_original():
    with pytest.raises(ConfigError, match="not quantised") as error:
        lorica.adapt(Stack(), Lora(r=4, init="loftq"))
    assert error.value.fix
    with pytest.raises(ConfigError, match=r"original weight of layers\.0\.up"):
        lorica.adapt(Stack(packed=True), Lora(r=4, init="loftq"))
