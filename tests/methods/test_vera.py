"""VeRA: two shared projections, and two learned vectors at each site."""

import copy
import math

import pytest
import torch
from torch import nn

import lorica
from lorica.core.bank import adapted_layers
from lorica.core.state import adapter_state
from lorica.errors import ConfigError
from lorica.formats.commit import read_tensors
from lorica.methods.vera import Projections, Vera, VeraAdapter
from tests.laws.bases import IDS, Stack, X, gpt2, move
from tests.methods.llama import llama


def places(model: nn.Module) -> dict[str, VeraAdapter]:
    return {site: adapters["default"] for site, _, adapters in adapted_layers(model)}


def test_by_hand():
    """A = [[1, 2], [0, 1]], B = [[1, 0], [1, 1], [0, 2]], d = (1, 3), v = (1, 10, 100)."""
    layer = nn.Linear(2, 3, bias=False)
    nn.init.zeros_(layer.weight)
    model = lorica.adapt(nn.Sequential(layer), Vera(r=2))
    (adapter,) = places(model).values()
    with torch.no_grad():
        adapter.projections.a.copy_(torch.tensor([[1.0, 2], [0, 1]]))
        adapter.projections.b.copy_(torch.tensor([[1.0, 0], [1, 1], [0, 2]]))
        adapter.d.copy_(torch.tensor([1.0, 3]))
        adapter.v.copy_(torch.tensor([1.0, 10, 100]))
    # A (1, 1) = (3, 1); times d (3, 3); B of it (3, 6, 6); times v (3, 60, 600)
    assert model(torch.ones(2)).tolist() == [3, 60, 600]
    a, b = adapter.factors()
    assert a.tolist() == [[1, 2], [0, 3]]
    assert b.tolist() == [[1, 0], [10, 10], [0, 200]]
    lorica.merge(model)
    assert (model(torch.ones(2))).tolist() == [3, 60, 600]


def test_starts():
    model = lorica.adapt(llama(), Vera(r=16, d_initial=0.3))
    base = llama()
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    for adapter in places(model).values():
        assert adapter.d.tolist() == [pytest.approx(0.3)] * 16
        assert not adapter.v.any()
    a, b = adapter.projections.a, adapter.projections.b
    assert (a.shape, b.shape) == ((16, 172), (172, 16)), "of the widest layers"
    for tensor, fan in ((a, 172), (b, 16)):
        bound = math.sqrt(6 / fan)
        assert 0.97 * bound < tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.05)


def test_the_first_step_moves_v_alone():
    model = lorica.adapt(llama(), Vera(r=16))
    model(IDS).logits.square().mean().backward()
    for adapter in places(model).values():
        assert not adapter.d.grad.any()
        assert adapter.v.grad.abs().max() > 0


def test_each_site_reads_its_part():
    model = move(lorica.adapt(llama(), Vera(r=16)))
    for site, module, adapters in adapted_layers(model):
        adapter, shared = adapters["default"], adapters["default"].projections
        i, o = adapters.in_features, adapters.out_features
        want = adapter.v[:, None] * shared.b[:o] @ (adapter.d[:, None] * shared.a[:, :i])
        x = torch.randn(5, i)
        torch.testing.assert_close(
            module(x), module.forward(x) + x @ want.T, atol=1e-5, rtol=1e-4, msg=site
        )


def test_the_counts_of_the_paper():
    """r + O a site; LLaMA-7B, 7 linears, r = 1024: the paper's 1.6 M."""
    layers = 4 * [4096] + 2 * [11008] + [4096]
    assert 32 * sum(1024 + o for o in layers) == 1_589_248
    model = lorica.adapt(llama(), Vera(r=16))
    outputs = [adapters.out_features for _, _, adapters in adapted_layers(model)]
    assert lorica.trainable_parameters(model).trainable == sum(16 + o for o in outputs)
    assert Vera.count == "r + O"


def test_projections_are_one_module_wherever_the_model_goes(tmp_path):
    model = move(lorica.adapt(llama(), Vera(r=16)))
    for moved in (
        model,
        copy.deepcopy(model),
        copy.deepcopy(model).double(),
        copy.deepcopy(model).to("cpu", torch.bfloat16),
    ):
        assert len({id(a.projections) for a in places(moved).values()}) == 1
        assert len({id(a.projections.a) for a in places(moved).values()}) == 1
        names = [k for k in adapter_state(moved) if "projections" in k]
        assert names == [f"model.layers.0.self_attn.q_proj.projections.{k}" for k in "ab"]
    assert places(copy.deepcopy(model))[
        "model.layers.0.self_attn.q_proj"
    ].projections is not adapter_of_first(model)
    files = read_tensors(lorica.save(model, tmp_path / "one") / "adapter_model.safetensors")
    wide = [k for k, t in files.items() if t.ndim == 2]
    assert len(wide) == 2


def adapter_of_first(model: nn.Module) -> Projections:
    return next(iter(places(model).values())).projections


def test_without_projections_the_file_is_small_and_the_seed_brings_them_back(tmp_path):
    model = lorica.adapt(llama(), Vera(r=16, save_projection=False), seed=5)
    move(model)
    folder = lorica.save(model, tmp_path / "small")
    inside = read_tensors(folder / "adapter_model.safetensors")
    assert len(inside) == 2 * 35
    assert all(t.ndim == 1 for t in inside.values())
    fresh = llama()
    torch.manual_seed(77)
    lorica.load(fresh, folder)
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    other = lorica.adapt(llama(), Vera(r=16), seed=6)
    assert not torch.equal(adapter_of_first(other).a, adapter_of_first(model).a)


def test_with_projections_another_seed_does_not_matter(tmp_path):
    import json

    from lorica.formats.commit import digest

    model = move(lorica.adapt(llama(), Vera(r=16), seed=5))
    folder = lorica.save(model, tmp_path / "whole")
    manifest = json.loads((folder / "manifest.json").read_text())
    config = folder / "adapter_config.json"
    told = json.loads(config.read_text()) | {"projection_prng_key": 6}
    config.write_text(json.dumps(told))
    files = manifest["files"] | {config.name: digest(config)}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"seed": 6, "files": files}))
    fresh = llama()
    lorica.load(fresh, folder)
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's
def test_the_projections_are_those_of_peft():
    """Drawn from PEFT's projection_prng_key, its two random matrices come out to a rounding.

    uniform_ scales what it draws: with a fused multiply-add on some processors, without on others.
    """
    peft = pytest.importorskip("peft")
    settings = {"target_modules": ["q_proj", "o_proj"], "projection_prng_key": 0}
    theirs = peft.get_peft_model(llama(), peft.VeraConfig(r=16, **settings)).base_model
    model = lorica.adapt(llama(), Vera(r=16), seed=0, target_modules=["q_proj", "o_proj"])
    for drawn, buffers in (
        (adapter_of_first(model).a, theirs.vera_A),
        (adapter_of_first(model).b, theirs.vera_B),
    ):
        want = buffers["default"]
        rounding = torch.finfo(want.dtype).eps * want.abs().max().item()
        torch.testing.assert_close(drawn, want, atol=rounding, rtol=0)


def test_a_site_may_have_a_smaller_r():
    model = move(lorica.adapt(llama(), Vera(r=16), rank_pattern={"q_proj": 4}))
    q = places(model)["model.layers.0.self_attn.q_proj"]
    assert (len(q.d), q.factors()[0].shape) == (4, (4, 64))
    want = model(IDS).logits
    lorica.merge(model)
    torch.testing.assert_close(model(IDS).logits, want, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="r=32") as error:
        lorica.adapt(llama(), Vera(r=16), rank_pattern={"q_proj": 32})
    assert error.value.fix


def test_transposed_layers():
    model = move(lorica.adapt(gpt2(), Vera(r=8)), size=1.0)
    want = model(IDS).logits
    assert not torch.allclose(want, gpt2()(IDS).logits, atol=1e-3)
    lorica.merge(model)
    torch.testing.assert_close(model(IDS).logits, want, atol=1e-5, rtol=1e-4)


def test_autocast_and_bfloat16():
    model = move(lorica.adapt(Stack().bfloat16(), Vera(r=8)), size=0.3)
    y = model(X)
    assert y.dtype == torch.bfloat16
    assert {a.projections.a.dtype for a in places(model).values()} == {torch.float32}
    single = move(lorica.adapt(Stack(), Vera(r=8)), size=0.3)
    torch.testing.assert_close(y.float(), single(X), atol=0.1, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(single(X).float(), single(X).float())
        torch.testing.assert_close(single(X).float(), y.float(), atol=0.1, rtol=0.1)


def test_dropout_acts_in_training_alone():
    model = move(lorica.adapt(Stack(), Vera(r=8, dropout=0.5)), size=0.3)
    assert torch.equal(model.eval()(X), model(X))
    assert not torch.equal(model.train()(X), model(X))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 0}, "vera.r"),
        ({"r": 2.5}, "vera.r"),
        ({"d_initial": 0.0}, "d_initial"),
        ({"d_initial": math.nan}, "d_initial"),
        ({"d_initial": math.inf}, "d_initial"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Vera(**settings)
    assert error.value.fix
