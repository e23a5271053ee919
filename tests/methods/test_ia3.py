"""IA3: vectors on keys, values and the inside of the MLP."""

import pytest
import torch
from torch import nn

import lorica
from lorica.core.bank import adapted_layers
from lorica.core.site import Site, sites_of
from lorica.errors import TargetError
from lorica.methods.ia3 import Ia3, Ia3Adapter, feedforward_by_shape, keys_values_by_shape
from tests.laws.bases import IDS, Stack, X, gpt2, move
from tests.methods.llama import llama


def places(model: nn.Module) -> dict[str, Ia3Adapter]:
    return {site: adapters["default"] for site, _, adapters in adapted_layers(model)}


def layout(model: nn.Module, **settings) -> dict[str, bool]:
    """{site: scaled at its input} of an adapted model."""
    return {s: a.feedforward for s, a in places(lorica.adapt(model, Ia3(**settings))).items()}


class Block(nn.Module):
    """Layers of given widths, side by side under the names that are given."""

    def __init__(self, **shapes: tuple[int, int]):
        super().__init__()
        for path, (i, o) in shapes.items():
            parent, _, leaf = path.rpartition("__")
            if parent and parent not in self._modules:
                self.add_module(parent, nn.Module())
            (self.get_submodule(parent) if parent else self).add_module(leaf, nn.Linear(i, o))


@pytest.mark.parametrize("feedforward, want", [(False, [33.0, 80.5]), (True, [35.0, 75.0])])
def test_by_hand(feedforward, want):
    """W = [[1, 2], [3, 4]], b = (1, 1), x = (2, 4): base (11, 23)."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2], [3, 4]]))
        layer.bias.fill_(1)
    model = nn.ModuleDict({"layer": layer})
    ends = ["layer"] if feedforward else []
    lorica.adapt(model, Ia3(feedforward_modules=ends), target_modules=["layer"])
    x = torch.tensor([2.0, 4])
    assert layer(x).tolist() == [11, 23]
    with torch.no_grad():
        places(model)["layer"].l.copy_(torch.tensor([3.0, 3.5]))
    got = layer(x).tolist()
    # output: 3 * 11, 3.5 * 23. input: W (6, 14) + 1 = (1 * 6 + 2 * 14 + 1, 3 * 6 + 4 * 14 + 1).
    assert got == want
    lorica.merge(model)
    assert model["layer"](x).tolist() == got
    assert model["layer"].bias.tolist() == ([1, 1] if feedforward else [3, 3.5])


def test_the_layers_of_llama():
    model = llama()
    found = layout(model)
    ends = {s.rpartition(".")[2]: f for s, f in found.items()}
    assert ends == {"k_proj": False, "v_proj": False, "down_proj": True}
    assert len(found) == 15
    assert lorica.trainable_parameters(model).trainable == 5 * (32 + 32 + 172)
    assert torch.equal(model(IDS).logits, llama()(IDS).logits), "vectors of ones change no bit"


def test_the_layers_of_gpt2():
    found = layout(gpt2())
    assert {s.split(".", 3)[-1]: f for s, f in found.items()} == {
        "attn.c_attn": False,
        "mlp.c_proj": True,
    }


def test_the_layers_of_bert_are_not_the_end_of_its_attention():
    model = Block(
        query=(8, 8), key=(8, 8), value=(8, 8), attention__dense=(8, 8), intermediate=(8, 32)
    )
    model.add_module("output", nn.ModuleDict({"dense": nn.Linear(32, 8)}))
    model.attention.add_module("output", nn.ModuleDict({"dense": nn.Linear(8, 8)}))
    assert layout(model) == {"key": False, "value": False, "output.dense": True}


def test_unknown_names_are_told_by_shape():
    attention = {
        "mix__one": (16, 16),
        "mix__two": (16, 16),
        "mix__three": (16, 16),
        "mix__back": (16, 16),
    }
    mlp = {"mlp__wide": (16, 40), "mlp__gate": (16, 40), "mlp__narrow": (40, 16)}
    assert layout(Block(**attention, **mlp)) == {
        "mix.two": False,
        "mix.three": False,
        "mlp.narrow": True,
    }
    grouped = {
        **attention,
        "mix__one": (16, 8),
        "mix__two": (16, 24),
        "mix__three": (16, 8),
        "mix__back": (24, 16),
    }
    assert layout(Block(**grouped, **mlp)) == {
        "mix.one": False,
        "mix.three": False,
        "mlp.narrow": True,
    }
    assert layout(Stack()) == {f"layers.{i}.down": True for i in range(2)}
    assert layout(Block(one=(8, 8))) == {"one": False}, "nothing to tell: all, at the output"


def test_each_block_has_its_own_widths():
    narrow, wide = Block(a=(4, 9), b=(9, 4)), Block(a=(30, 60), b=(60, 30))
    sites = sites_of(nn.ModuleDict({"layers": nn.ModuleList([narrow, wide])}))
    assert feedforward_by_shape(sites) == {"layers.0.b", "layers.1.b"}
    assert keys_values_by_shape(sites) == set()


def test_listed_layers_are_told_apart_by_name():
    found = layout(llama())
    listed = {
        s: a.feedforward
        for s, a in places(lorica.adapt(llama(), Ia3(), target_modules="all-linear")).items()
    }
    assert len(listed) == 35
    assert {s for s, f in listed.items() if f} == {s for s, f in found.items() if f}


def test_what_is_scaled_at_the_input_can_be_said():
    model = lorica.adapt(
        llama(), Ia3(feedforward_modules=["o_proj"]), target_modules=["o_proj", "down_proj"]
    )
    assert {s.rpartition(".")[2]: a.feedforward for s, a in places(model).items()} == {
        "o_proj": True,
        "down_proj": False,
    }
    assert {a.l.shape for a in places(model).values()} == {(64,)}
    with pytest.raises(TargetError, match="dwon_proj") as error:
        lorica.adapt(llama(), Ia3(feedforward_modules=["down_proj", "dwon_proj"]))
    assert "down_proj" in error.value.facts["closest"]
    with pytest.raises(TargetError, match="o_proj"):
        lorica.adapt(llama(), Ia3(feedforward_modules=["o_proj"]))


def test_the_gradient_of_the_first_step():
    """dL/dl = sum over tokens of g * (W x + b), or of x * (W^T g)."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"k_proj": nn.Linear(4, 3), "fc2": nn.Linear(4, 3)})
    lorica.adapt(model, Ia3())
    x, g = torch.randn(6, 4), torch.randn(6, 3)
    for name, layer in model.items():
        (layer(x) * g).sum().backward()
        y = layer.forward(x)
        want = (g * y).sum(0) if name == "k_proj" else (x * (g @ layer.weight)).sum(0)
        torch.testing.assert_close(places(model)[name].l.grad, want)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_saving_merging_and_several(make, tmp_path):
    model = move(lorica.adapt(make(), Ia3()), size=2.0)  # the random gpt2 hardly looks at its keys
    want = model(IDS).logits
    assert (want - make()(IDS).logits).abs().max() > 1e-3
    fresh = make()
    assert lorica.load(fresh, lorica.save(model, tmp_path / "ia3")) == []
    assert torch.equal(fresh(IDS).logits, want)
    lorica.adapt(fresh, lorica.Lora(r=2), name="lora")
    lorica.activate(fresh, "default", "lora")
    torch.testing.assert_close(fresh(IDS).logits, want)
    lorica.merge(model)
    torch.testing.assert_close(model(IDS).logits, want, atol=1e-4, rtol=1e-4)


def test_bfloat16():
    model = move(lorica.adapt(Stack().bfloat16(), Ia3()), size=0.5)
    assert model(X).dtype == torch.bfloat16
    assert {a.l.dtype for a in places(model).values()} == {torch.float32}


def test_embeddings_are_refused():
    with pytest.raises(TargetError):
        lorica.adapt(llama(), Ia3(), target_modules=["embed_tokens"])
    assert all(isinstance(s, Site) for s in Ia3().choose(sites_of(llama())))
