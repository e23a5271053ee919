"""What a quantised layer computes: forward, backward, adapters on it, and no bit of it changes."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica import Dora, Lora
from lorica.base.quantise import QuantisedLinear, quantise
from lorica.core.site import action, site_of
from tests.base.quantised_weights import each_kind, each_shape, linear
from tests.laws.bases import Stack, bits, move, quantised, same_bits


@each_kind
@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_backward_and_identity_are_those_of_the_unpacked_weight(kind, shape, dtype):
    layer = quantise(linear(*shape, bias=True), kind).to(dtype)
    weight, bias = layer.weight_as(dtype), layer.bias
    for rows in ((1, shape[0]), (33, shape[0]), (2, 3, shape[0])):
        x = torch.randn(rows).to(dtype).requires_grad_()
        y = layer(x)
        assert torch.equal(y, nn.functional.linear(x, weight) + bias)
        grad = torch.randn_like(y)
        y.backward(grad)
        assert x.grad is not None
        torch.testing.assert_close(x.grad, grad @ weight)
        with torch.no_grad():
            assert torch.equal(layer(x), y)
    site = site_of("layer", layer)
    assert site is not None
    assert site.like.dtype == dtype
    asked, _ = action(copy_without_bias(layer), shape[0], site.like)
    dense, shift = site.dense()
    assert torch.equal(dense, asked)
    assert torch.equal(dense, weight.float())
    assert shift is not None
    assert torch.equal(shift, bias.float())


def copy_without_bias(layer: QuantisedLinear) -> QuantisedLinear:
    other = copy.deepcopy(layer)
    other.bias = None
    return other


def test_a_large_bias_does_not_change_the_weights_that_are_read():
    dense = linear(64, 64, bias=True)
    with torch.no_grad():
        dense.bias.fill_(1000)
    layer = quantise(dense, "nf4").bfloat16()
    site = site_of("layer", layer)
    assert site is not None
    assert torch.equal(site.dense()[0], layer.weight_as(torch.bfloat16).float())


@each_kind
@pytest.mark.parametrize("double", [True, False])
def test_use_changes_no_stored_bit(kind, double):
    """Modes, steps, copies, dtypes: codes and scales stay, and so does what is computed."""
    layer = quantise(linear(48, 64, bias=True), kind, double=double)
    x, before = torch.randn(5, 48), bits(layer)
    want = layer(x)
    layer.train()
    assert torch.equal(layer(x), want)
    for _ in range(3):
        y = layer(x.clone().requires_grad_())
        y.square().mean().backward()
        layer.eval()
        with torch.no_grad():
            assert torch.equal(layer(x), want)
            assert torch.equal(layer(x[:1]), layer(x[:1]))
        with torch.inference_mode():
            assert torch.equal(layer(x), want)
        layer.train()
    assert torch.equal(copy.deepcopy(layer)(x), want)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), want)
    there_and_back = copy.deepcopy(layer).bfloat16().half().float()
    assert torch.equal(there_and_back.weight_as(torch.float32), layer.weight_as(torch.float32))
    fresh = quantise(linear(48, 64, bias=True, seed=9), kind, double=double)
    assert not torch.equal(fresh(x), want)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), want)
    assert same_bits(before, bits(layer))


@each_kind
def test_the_backward_pass_keeps_no_unpacked_weight(kind):
    layer, kept = quantise(linear(64, 64), kind), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True))
    assert torch.Size((64, 64)) not in kept


@each_kind
@pytest.mark.parametrize("method", [Lora(r=4), Dora(r=4)], ids=["lora", "dora"])
def test_the_base_gets_no_gradient_and_keeps_its_bits(kind, method):
    model = move(lorica.adapt(quantised(kind), method))
    before = bits(model)
    x = torch.randn(4, 12, requires_grad=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
    assert x.grad is not None
    assert x.grad.abs().min() > 0
    learned = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learned
    assert all(".adapters." in name for name in learned)
    assert same_bits(before, bits(model))


def test_doras_norm_is_that_of_the_unpacked_weight():
    model = lorica.adapt(quantised("nf4"), Dora(r=2))
    layer = model.layers[0]["up"]
    want = layer.weight_as(torch.float32).norm(dim=1)
    torch.testing.assert_close(layer.adapters["default"].m.detach(), want)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_layers_of_bitsandbytes_itself_are_adapted_too(kind):
    """A model that somebody else has packed. LLM.int8() rounds activations: it is less exact."""
    import bitsandbytes

    model = Stack()
    for layer in model.layers:
        for key in list(layer):
            dense = layer[key]
            shape = (dense.in_features, dense.out_features, dense.bias is not None)
            if kind == "nf4":
                raw = bitsandbytes.nn.Linear4bit(
                    *shape, compute_dtype=torch.float32, quant_type="nf4"
                )
            else:
                raw = bitsandbytes.nn.Linear8bitLt(*shape, has_fp16_weights=False)
            raw.load_state_dict(dense.state_dict())
            layer[key] = raw.to("cpu").train(kind == "nf4")  # 4 bits: in eval mode with AVX-512
            # it computes in bfloat16, and asserts that O is a multiple of 32
    x = torch.randn(4, 12)
    model.forward = lambda x: forward(model, x)  # Stack takes its dtype from the first parameter
    site = site_of("", model.layers[1]["up"])
    assert site is not None
    assert (site.like.dtype, site.is_dense) == (torch.float32, False)
    if kind == "nf4":
        weight = quantise(Stack().layers[1]["up"], "nf4").weight_as(torch.float32)
        torch.testing.assert_close(site.dense()[0], weight)
    move(lorica.adapt(model, Lora(r=2)))
    want = model(x)
    lorica.merge(model)
    exact = 1e-5 if kind == "nf4" else 0.02
    torch.testing.assert_close(model(x), want, atol=exact, rtol=exact)


def forward(model: Stack, x: Tensor) -> Tensor:
    for layer in model.layers:
        x = model.block(layer, x)  # type: ignore[arg-type]
    return x


@each_kind
def test_full_fine_tuning_of_quantised_layers_is_refused(kind):
    with pytest.raises(lorica.LoricaError, match="quantised layers cannot be trained in full"):
        lorica.adapt(quantised(kind), Lora(), target_modules=["up"], modules_to_save=["down"])
