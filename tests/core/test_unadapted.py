"""A layer is a target only if a call of it shows a linear layer; what is left out is said."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lorica
from lorica.core.attach import detach
from lorica.core.bank import adapted_layers
from lorica.core.fused_experts import fused_experts
from lorica.core.site import sites_of
from lorica.core.targets import Targets, left_out
from lorica.core.unadapted import unsupported_layers
from lorica.errors import TargetError
from tests.base.architectures import tiny
from tests.laws.bases import move


class Router(nn.Linear):
    """Scores of 3 experts, and which were chosen."""

    def forward(self, x):  # type: ignore[override]
        scores = super().forward(x)
        return scores.softmax(-1), scores.argmax(-1)


class Halved(nn.Linear):
    """Declares twice the features that it gives."""

    def forward(self, x):  # type: ignore[override]
        return super().forward(x)[..., ::2]


class Paired(nn.Linear):
    def forward(self, x, other):  # type: ignore[override]
        return super().forward(x) + other


class Scaled(nn.Linear):
    """A linear layer in all but its class."""

    def forward(self, hidden):  # type: ignore[override]
        return 2 * super().forward(hidden)


class Flat(nn.Linear):
    """Takes tokens in one row only."""

    def forward(self, x):  # type: ignore[override]
        return F.linear(torch.addmm(x.new_zeros(1, 4), x, self.weight.T), torch.eye(4))


ODD = {Router: "returns a tuple", Halved: "returns (2, 3, 2)", Paired: "refuses a tensor alone"}


class Block(nn.Module):
    """A plain layer, one of `kind`, a convolution, and layers called by keywords."""

    def __init__(self, kind: type[nn.Linear]):
        super().__init__()
        self.plain, self.odd = nn.Linear(4, 4), kind(4, 4)
        self.by_keyword, self.scaled = nn.Linear(4, 4), Scaled(4, 4)
        self.conv1d = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.scaled(hidden=self.by_keyword(input=self.plain(x)))
        return x + self.conv1d(x.mT).mT


def adapted(model: nn.Module, **targets: object) -> list[str]:
    lorica.adapt(model, lorica.Lora(r=2), **targets)
    names = [name for name, _, _ in adapted_layers(model)]
    detach(model)
    return names


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_linear_layer_is_left_out_or_refused_by_name(kind):
    model = Block(kind)
    rest = ["plain", "by_keyword", "scaled"]
    method = lorica.Lora()
    assert adapted(model) == adapted(model, target_modules="all-linear") == rest
    assert adapted(model, exclude_modules="odd") == rest  # as people write it who know of it
    said = left_out(model, Targets(), method.kinds, method.choose)
    assert said is not None and said.startswith("1 layers are not adapted: odd " + ODD[kind])
    for named in (["odd"], ["plain", "odd"], "plain|odd"):
        with pytest.raises(TargetError, match="cannot be adapted") as error:
            adapted(model, target_modules=named)
        assert f"odd {ODD[kind]}" in str(error.value)


def test_plain_layers_of_other_classes_stay_targets():
    model = Block(Flat)
    assert unsupported_layers(sites_of(model)) == {}
    assert left_out(model, Targets(), ("linear",), lambda sites: sites) is None


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "vera", "bottleneck"])
def test_a_layer_that_is_called_by_keywords_is_adapted(name):
    """As the same layer called by position; before, the hook read an argument that is not there."""
    model, x = Block(Flat), torch.randn(2, 5, 4)
    want = [m(x) for m in (model.by_keyword, model.scaled)]
    method = lorica.method(name, **({"feedforward_modules": ["scaled"]} if name == "ia3" else {}))
    lorica.adapt(model, method, target_modules=["by_keyword", "scaled"])
    move(model, size=0.3)
    by_place = [model.by_keyword(x), model.scaled(x)]
    for before, place, call in zip(
        want, by_place, [model.by_keyword(input=x), model.scaled(hidden=x)], strict=True
    ):
        assert torch.equal(place, call)
        assert not torch.equal(before, call)


def test_a_convolution_that_is_named_is_called_one():
    with pytest.raises(TargetError, match="conv1d is a Conv1d, which cannot be adapted"):
        adapted(Block(Flat), target_modules=["conv1d"])


@pytest.mark.parametrize("name", ["llama4_chunks", "phimoe"])
def test_routers_of_experts_are_left_out_and_experts_are_counted(name):
    model = tiny(name)
    lorica.adapt(model, lorica.Lora(r=2))
    assert not [site for site, _, _ in adapted_layers(model) if site.endswith("router")]
    model(torch.arange(3, 9).unsqueeze(0)).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    (line,) = fused_experts(model)
    fused = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    every = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert f"{fused / every:.0%} of the parameters" in line


def test_the_notice_names_the_setting_that_adapts_experts():
    model = tiny("qwen3_moe")
    (line,) = fused_experts(model)
    assert "target_parameters: experts adapts them" in line
    (other,) = fused_experts(tiny("llama4_chunks"))
    assert "does not declare" in other and "target_parameters" not in other
    lorica.adapt(model, lorica.Lora(r=2), target_parameters=["gate_up_proj"])
    (rest,) = fused_experts(model)
    assert "layers.0.mlp.experts.down_proj and others" in rest
    detach(model)
    lorica.adapt(model, lorica.Dora(r=2), target_parameters="experts")
    assert fused_experts(model) == []


def test_bases_without_experts_say_nothing():
    for name in ("llama", "gpt2", "mamba", "lfm2", "rwkv"):
        assert fused_experts(tiny(name)) == []
