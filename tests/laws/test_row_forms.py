"""A method's form for serving computes what the method does, where it has one."""

import pytest
import torch
from torch.nn import functional as F

from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers
from lorica.core.condition import set_conditions
from tests.laws.bases import Case, named, pairs, trained

WITHOUT = {"bottleneck", "full", "llama_adapter", "mora", "prefix_tuning", "prompt_tuning"}
"""Methods that have no form at a site of their own choice."""


@pytest.mark.parametrize("name, case", pairs())
@torch.no_grad()
def test_the_form_of_a_row_is_what_the_method_does(name: str, case: Case):
    settings = {"conditions": ("a", "b")} if name == "hyperlora" else {}
    model = trained(name, case, **settings).eval()
    if settings:
        set_conditions(model, ["b"])
    forms = 0
    for _, module, adapters in adapted_layers(model):
        site, (adapter,) = adapters.as_site(module), adapters.acting_adapters()
        if site.kind != "linear":
            continue
        dtype = site.like.dtype
        form = adapter.row_form(module.forward, dtype)
        if form is None:
            continue
        forms += 1
        assert form.a.shape[1] == site.in_features and form.b.shape == (site.out_features, form.r)
        x = torch.randn(3, 5, site.in_features, generator=torch.Generator().manual_seed(5)).to(
            dtype
        )
        want = adapter.after(x, module.forward(x).clone(), module.forward).float()
        a, b = form.a.to(dtype), form.b.to(dtype)
        got = module.forward(x) + F.linear(F.linear(x, a), b)
        got = got * (1 if form.size is None else form.size.to(dtype))
        got = (got + (0 if form.shift is None else form.shift.to(dtype))).float()
        bound = 2e-5 if dtype == torch.float32 else 0.03
        assert (got - want).abs().max() <= bound * want.abs().max().clamp_min(1), site.name
    no_linear = case.targets.get("target_modules") == []
    scales_inputs = name == "ia3" and case.floats
    assert forms or name in WITHOUT or scales_inputs or no_linear
    assert not forms or Method.named(name).to_lora != "never"


@torch.no_grad()
def test_a_bias_is_a_shift_and_a_scale_of_inputs_is_no_form():
    stack, llama = named("stack"), named("llama")
    lora = _forms(trained("lora", stack, lora_bias=True))
    assert all(form is not None and form.shift is not None for form in lora.values())
    ia3 = _forms(trained("ia3", llama))
    assert {name.rpartition(".")[2] for name, form in ia3.items() if form is None} == {"down_proj"}
    assert {form.r for form in ia3.values() if form is not None} == {0}


def _forms(model):
    return {
        name: next(iter(layer.values())).row_form(module.forward, torch.float32)
        for name, module, layer in adapted_layers(model)
    }
