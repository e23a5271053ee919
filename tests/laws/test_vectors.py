"""Numbers worked out by hand for each formula, and the count of what each method trains."""

import math

import pytest
import torch
from torch import nn

import lorica
from lorica import Dora, Full, Lora
from lorica.core.adapter import Adapter, Method
from lorica.core.bank import adapted_layers
from lorica.core.rates import rates_of
from lorica.core.site import sites_of
from lorica.core.state import adapter_state
from lorica.errors import ConfigError
from lorica.methods.double_lora import DoubleLora
from lorica.methods.lora_fa import LoraFa
from tests.laws.bases import CASES, Stack, method, small_llama


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    return layer


class One(nn.Module):
    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def adapter_of(model: nn.Module) -> Adapter:
    return next(adapters for _, _, adapters in adapted_layers(model)).acting_adapters()[0]


def hand_made() -> nn.Module:
    """W 2x3, A = (1, 0, -1), B = (2, 1), alpha 2, r 1."""
    model = lorica.adapt(One(linear([[1, 2, 3], [4, 5, 6]])), Lora(r=1, alpha=2))
    adapter = adapter_of(model)
    with torch.no_grad():
        adapter.a.copy_(torch.tensor([[1.0, 0, -1]]))
        adapter.b.copy_(torch.tensor([[2.0], [1.0]]))
    return model


def test_lora_by_hand():
    model, x = hand_made(), torch.tensor([1.0, 1, 2])
    with lorica.use(model):
        assert model(x).tolist() == [9, 21]
    assert model(x).tolist() == [5, 19]
    lorica.merge(model)
    assert model.layer.weight.tolist() == [[5, 2, -1], [6, 5, 4]]


def test_the_first_step_of_lora_moves_b_alone():
    model = lorica.adapt(One(linear([[1, 2, 3], [4, 5, 6]])), Lora(r=2, alpha=6))
    adapter, x = adapter_of(model), torch.tensor([[1.0, 1, 2], [0, 3, 1]])
    g = torch.tensor([[1.0, -1], [2, 0.5]])
    (model(x) * g).sum().backward()
    assert adapter.a.grad.abs().max() == 0
    torch.testing.assert_close(adapter.b.grad, 3 * g.T @ (x @ adapter.a.T))


def test_the_rank_of_the_update_is_at_most_r():
    model = lorica.adapt(Stack(), Lora(r=3))
    before = [p.clone() for p in Stack().parameters() if p.ndim == 2]
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    lorica.merge(model)
    for old, new in zip(before, (p for p in model.parameters() if p.ndim == 2), strict=True):
        assert torch.linalg.matrix_rank(new - old, rtol=1e-5) == 3


def test_scales():
    assert Lora(r=16, alpha=8, use_rslora=True).scale == 2.0
    assert Lora(r=16, alpha=8).scale == 0.5
    assert Lora(r=4).scale == Lora(r=64).scale == 2.0
    assert Lora(r=4, use_rslora=True).scale == 4.0


def test_rslora_scales_the_branch():
    outputs = []
    for settings in ({"use_rslora": True}, {}):
        model = lorica.adapt(One(linear([[0.0] * 3] * 2)), Lora(r=4, alpha=8, **settings))
        nn.init.ones_(adapter_of(model).b)
        outputs.append(model(torch.ones(3)))
    torch.testing.assert_close(outputs[0], outputs[1] * math.sqrt(4))


def test_lora_starts():
    model = lorica.adapt(One(nn.Linear(400, 30)), Lora(r=8))
    bound = adapter_of(model).a.abs().max().item()
    assert 0.045 < bound <= 1 / math.sqrt(400)
    assert adapter_of(model).b.abs().max() == 0
    model = lorica.adapt(One(nn.Linear(400, 30)), Lora(r=8, init="gaussian"))
    assert abs(adapter_of(model).a.std().item() - 1 / 8) < 0.01
    words = lorica.adapt(nn.Sequential(nn.Embedding(300, 30)), Lora(r=8), target_modules="all")
    assert adapter_of(words).a.abs().max() == 0
    assert abs(adapter_of(words).b.std().item() - 1) < 0.15


def test_dropout_acts_in_training_alone():
    model = lorica.adapt(Stack(), Lora(dropout=0.5))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    x = torch.ones(4, 12)
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))
    base = lorica.adapt(One(linear([[0.0] * 400])), Lora(r=1, alpha=1, dropout=0.25)).train()
    adapter = adapter_of(base)
    nn.init.ones_(adapter.a), nn.init.ones_(adapter.b)
    dropped = base(torch.ones(500, 400)).mean().item()
    assert abs(dropped - 400) < 4, "the mean is kept: what remains is scaled by 1 / (1 - p)"


def dora_by_hand() -> nn.Module:
    model = lorica.adapt(One(linear([[3, 4], [0, 2]])), Dora(r=1, alpha=1))
    adapter = adapter_of(model)
    assert adapter.m.tolist() == [5, 2]
    with torch.no_grad():
        adapter.a.copy_(torch.tensor([[1.0, 0]]))
        adapter.b.copy_(torch.tensor([[1.0], [1.0]]))
    return model


def test_dora_by_hand():
    model = dora_by_hand()
    adapter = adapter_of(model)
    norm = adapter.norm(torch.float32, model.layer.forward)
    torch.testing.assert_close(norm, torch.tensor([5.6568542, 2.2360680]))
    want = torch.tensor([[3.5355339, 3.5355339], [0.8944272, 1.7888544]])
    torch.testing.assert_close(model(torch.eye(2)).T, want)
    lorica.merge(model)
    torch.testing.assert_close(model.layer.weight.detach(), want)
    torch.testing.assert_close(model.layer.weight.detach().norm(dim=1), torch.tensor([5.0, 2]))


def test_dora_holds_the_norm_constant_in_the_backward_pass():
    model = dora_by_hand()
    adapter = adapter_of(model)
    (model(torch.eye(2)).T * torch.tensor([[1.0, 2], [3, 4]])).sum().backward()
    torch.testing.assert_close(adapter.m.grad, torch.tensor([2.1213203, 4.9193496]))
    # With the norm in the graph these would be -0.4419417 and 0.7155418.
    torch.testing.assert_close(adapter.b.grad.flatten(), torch.tensor([0.8838835, 2.6832816]))
    want = torch.tensor([[0.8838835 + 2.6832816, 1.7677670 + 3.5777088]])
    torch.testing.assert_close(adapter.a.grad, want)


DENSE_NORMS = [c for c in CASES if c.exact < 1e-3 and c.needs != "expert"]


@pytest.mark.parametrize("case", DENSE_NORMS, ids=str)
def test_doras_norm_is_the_norm_of_the_dense_weight(case):
    model = lorica.adapt(case.make(), Dora(r=4), **case.targets)
    for _, module, adapters in adapted_layers(model):
        adapter = adapters["default"]
        nn.init.normal_(adapter.a), nn.init.normal_(adapter.b)
        weight, _ = adapters.as_site(module).dense()
        want = (weight + adapter.scale * adapter.b @ adapter.a).norm(dim=1)
        got = adapter.norm(torch.float32, module.forward)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_rows_of_zeros_are_safe_in_dora():
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[1:3] = 0
    base = layer(torch.ones(6)).detach()
    model = lorica.adapt(One(layer), Dora(r=2))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    torch.testing.assert_close(model(torch.ones(6)), base)
    for _ in range(4):
        model(torch.randn(5, 6)).square().sum().backward()
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all()
        optimizer.step()
        optimizer.zero_grad()
    assert model(torch.randn(5, 6)).isfinite().all()
    want = model(torch.ones(6))
    lorica.merge(model)
    torch.testing.assert_close(model(torch.ones(6)), want)


def test_the_bias_is_not_scaled_by_dora():
    layer = nn.Linear(3, 2)
    model = lorica.adapt(One(layer), Dora(r=1))
    with torch.no_grad():
        adapter_of(model).m.mul_(2)
    want = 2 * layer.weight.sum(1) + layer.bias
    torch.testing.assert_close(model(torch.ones(3)), want)


LORAPLUS = {  # kind of site -> tensors at the rate, and those at `ratio` times the rate
    "linear": ({"a"}, {"b", "bias", "m"}),
    "embedding": ({"b"}, {"a", "m"}),
}


@pytest.mark.parametrize("kind", LORAPLUS)
@pytest.mark.parametrize("method", [Lora, Dora, DoubleLora, LoraFa])
def test_loraplus_is_fast_where_the_start_is_zero_and_on_vectors(method, kind):
    if kind not in method.kinds:
        return
    base: nn.Module = nn.Linear(6, 8) if kind == "linear" else nn.Embedding(6, 8)
    bias = {"lora_bias": True} if method is Lora and kind == "linear" else {}
    model = lorica.adapt(
        nn.Sequential(base), method(r=2, loraplus_lr_ratio=16, **bias), target_modules="all"
    )
    rates, tensors = rates_of(model, 1e-4), adapter_state(model)
    slow, fast = LORAPLUS[kind]
    for name, rate in rates.items():
        role = name.rpartition(".")[2].rstrip("12")
        assert rate == (1e-4 if role in slow else pytest.approx(1.6e-3)), name
        assert role in slow | fast
        if role in ("a", "b"):
            assert bool(tensors[name].any()) == (role in slow), "the slow factor starts at random"
    assert Lora().learning_rate("b", 1e-4) == Full().learning_rate("weight", 1e-4) == 1e-4


def test_layers_that_are_trained_whole_keep_the_runs_rate():
    model = lorica.adapt(
        nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}),
        Lora(r=2, loraplus_lr_ratio=16),
        target_modules=["a"],
        modules_to_save=["b"],
    )
    assert {k: r for k, r in rates_of(model, 1e-4).items() if k.startswith("b")} == {
        "b.weight": 1e-4,
        "b.bias": 1e-4,
    }


COUNTS = {
    "lora": lambda r, i, o, whole: r * (i + o),
    "dora": lambda r, i, o, whole: r * (i + o) + o,
    "adalora": lambda r, i, o, whole: r * (i + o + 1),
    "dora_dynamic": lambda r, i, o, whole: r * (i + o + 1),
    "bottleneck": lambda r, i, o, whole: 2 * r * o + r + o,
    "mora": lambda r, i, o, whole: (int(math.sqrt((i + o) * r) + 0.5) // 2 * 2) ** 2,
    "double_lora": lambda r, i, o, whole: r * (i + o),
    "lora_fa": lambda r, i, o, whole: r * o,
    "vera": lambda r, i, o, whole: r + o,
    "ia3": lambda r, i, o, whole: i if i in (20, 172) else o,  # at the down layers the input
    "blora": lambda r, i, o, whole: r * (i + o) + r + (r - 1) + 3 * (3 + 1),
    "full": lambda r, i, o, whole: whole,
    "alora": lambda r, i, o, whole: 2 * r * (i + o),
    "aflora": lambda r, i, o, whole: r * (i + o) + r + o,
}


@pytest.mark.parametrize("make", [Stack, small_llama], ids=["stack", "llama"])
@pytest.mark.parametrize("name", sorted(COUNTS))
def test_what_is_trained_is_counted_in_closed_form(name, make):
    model = make()
    targets = [s for s in sites_of(model) if not s.name.endswith("lm_head")]
    want = sum(
        COUNTS[name](
            4, s.in_features, s.out_features, sum(p.numel() for p in s.module.parameters())
        )
        for s in targets
    )
    total = sum(p.numel() for p in model.parameters())
    lorica.adapt(model, method(name), target_modules="all-linear")
    count = lorica.trainable_parameters(model)
    assert (count.trainable, count.total) == (want, total)
    assert count.share == want / total


def test_the_counts_of_the_papers():
    assert COUNTS["lora"](5, 500, 100, 0) == 3_000
    assert 32 * 2 * COUNTS["lora"](8, 4096, 4096, 0) == 4_194_304
    llama = 4 * [(4096, 4096)] + 2 * [(4096, 11008)] + [(11008, 4096)]
    assert 32 * sum(COUNTS["lora"](64, i, o, 0) for i, o in llama) == 159_907_840


def test_full_trains_every_tensor_once():
    count = lorica.trainable_parameters(lorica.adapt(small_llama(), Full()))
    assert count.trainable == count.total == 260_032


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 0}, "lora.r"),
        ({"r": -2}, "lora.r"),
        ({"r": 2.5}, "lora.r"),
        ({"dropout": 1.0}, "lora.dropout"),
        ({"dropout": -0.1}, "lora.dropout"),
        ({"alpha": 0}, "lora.alpha"),
        ({"alpha": -1}, "lora.alpha"),
        ({"alpha": math.inf}, "lora.alpha"),
        ({"alpha": math.nan}, "lora.alpha"),
        ({"loraplus_lr_ratio": 0.5}, "loraplus"),
        ({"loraplus_lr_ratio": math.nan}, "loraplus"),
        ({"dropout": math.nan}, "lora.dropout"),
        ({"init": "kaimin"}, "lora.init"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Lora(**settings)
    assert error.value.fix


def test_settings_that_dora_lacks():
    with pytest.raises(ConfigError, match="lora_bias"):
        Dora(lora_bias=True)
    with pytest.raises(ConfigError, match=r"dora\.r"):
        Dora(r=0)


def test_an_unknown_method_is_named():
    with pytest.raises(ConfigError, match="'lroa'") as error:
        Method.named("lroa")
    assert "lora" in error.value.facts["closest"]
