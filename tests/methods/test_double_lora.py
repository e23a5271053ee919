"""Double LoRA: that it is one LoRA, what its own settings change, and its schedule in a run."""

import copy

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.core.bank import attached
from lorica.core.drive import Driver
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError
from lorica.methods.double_lora import DoubleLora, DoubleLoraAdapter
from tests.laws.bases import Stack, move
from tests.methods.llama import llama

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))


def double(**settings) -> nn.Module:
    return lorica.adapt(Stack(), DoubleLora(**{"r": 6, **settings}))


def pairs(model: nn.Module) -> list[DoubleLoraAdapter]:
    return list(attached(model, "default").adapters.values())  # type: ignore[arg-type]


def beside(adapter: DoubleLoraAdapter) -> tuple[torch.Tensor, torch.Tensor]:
    """[A1; A2] and [B1 | B2]."""
    return torch.cat([adapter.a1, adapter.a2]), torch.cat([adapter.b1, adapter.b2], 1)


class Run:
    """A loop of our own, as the trainer runs it, in the dtype of the model."""

    def __init__(self, model: nn.Module, total: int, lr: float = 1e-2, decay: float = 0.0):
        self.model, self.driver = model, Driver(model, total=total)
        self.tensors = {k: t for k, t in adapter_state(model).items() if t.requires_grad}
        self.optimizer = torch.optim.AdamW(self.tensors.values(), lr=lr, weight_decay=decay)
        self.norms: list[float] = []

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.driver.t)
        x = torch.randn(8, 12, generator=generator).to(next(self.model.parameters()).dtype)
        (self.model(x).sin().square().sum() + self.driver.penalty()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.tensors.values(), 1.0)
        self.norms.append(float(norm))
        self.driver.before_step()
        self.optimizer.step()
        self.driver.after_step()
        self.optimizer.zero_grad()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"second_r": 1},
        {"second_r": 5},
        {"alpha": 3, "use_rslora": True},
        {"loraplus_lr_ratio": 4.0},
        {"dropout": 0.3},
    ],
    ids=str,
)
def test_it_is_one_lora_through_a_run_of_adam(settings):
    """In float64, with the same start, rates and dropped inputs: 50 steps, all numbers."""
    model = double(**settings).double()
    plain = {k: v for k, v in settings.items() if k != "second_r"}
    other = lorica.adapt(Stack(), Lora(r=6, **plain)).double()
    with torch.no_grad():
        for one, two in zip(pairs(other), pairs(model), strict=True):
            for mine, theirs in zip((one.a, one.b), beside(two), strict=True):
                mine.copy_(theirs)
    for m, method in ((model, DoubleLora(r=6, **settings)), (other, Lora(r=6, **plain))):
        groups = [
            {"params": [t], "lr": method.learning_rate(k.rpartition(".")[2], 1e-2)}
            for k, t in adapter_state(m).items()
        ]
        optimizer, losses = torch.optim.Adam(groups), []
        for step in range(50):
            torch.manual_seed(step)
            x = torch.randn(8, 12, dtype=torch.float64)
            loss = m.train()(x).sin().square().sum()
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0] * 0.9, "it learns"
    for one, two in zip(pairs(other), pairs(model), strict=True):
        for mine, theirs in zip((one.a, one.b), beside(two), strict=True):
            assert (mine - theirs).abs().max() < 1e-10
        assert one.b.abs().max() > 0.05


def test_the_pairs_start_apart_and_as_the_base():
    model = double(second_r=3)
    assert torch.equal(model(X), Stack()(X))
    for adapter in pairs(model):
        bound = adapter.a1.shape[1] ** -0.5
        assert not torch.equal(adapter.a1, adapter.a2)
        assert 0.5 * bound < adapter.a1.abs().max() <= bound
        assert 0.5 * bound < adapter.a2.abs().max() <= bound
        assert adapter.b1.abs().max() == adapter.b2.abs().max() == 0
    model(X).sum().backward()
    for adapter in pairs(model):
        assert adapter.a1.grad.abs().max() == adapter.a2.grad.abs().max() == 0
        assert adapter.b1.grad.abs().max() > 0
        assert adapter.b2.grad.abs().max() > 0


def test_ranks_and_scales():
    assert DoubleLora(r=8).ranks == (4, 4)
    assert DoubleLora(r=7).ranks == (4, 3)
    assert DoubleLora(r=8, second_r=1).ranks == (7, 1)
    (adapter, *_) = pairs(double(alpha=3, second_scale_ratio=0.25))
    assert (adapter.scale, adapter.second_scale) == (0.5, 0.125)
    model = move(double(alpha=3, second_scale_ratio=0.25))
    (adapter, *_) = pairs(model)
    want = 0.5 * adapter.b1 @ adapter.a1 + 0.125 * adapter.b2 @ adapter.a2
    a, b = adapter.factors()
    torch.testing.assert_close(b @ a, want)
    layer = model.layers[0]["up"]
    torch.testing.assert_close(layer(X), Stack().layers[0]["up"](X) + X @ want.T)


def test_rates_of_learning():
    method = DoubleLora(second_lr_ratio=0.5, loraplus_lr_ratio=4)
    rates = {key: method.learning_rate(key, 1e-3) for key in ("a1", "b1", "a2", "b2")}
    assert rates == pytest.approx({"a1": 1e-3, "b1": 4e-3, "a2": 5e-4, "b2": 2e-3})


def test_a_pattern_of_ranks_changes_both():
    model = lorica.adapt(Stack(), DoubleLora(r=6), rank_pattern={"up": 10})
    assert {(len(a.a1), len(a.a2)) for a in pairs(model)} == {(5, 5), (3, 3)}
    with pytest.raises(ConfigError, match="second_r"):
        lorica.adapt(Stack(), DoubleLora(r=6, second_r=4), rank_pattern={"up": 3})


# -- schedule -----------------------------------------------------------------------------------


def test_the_second_pair_waits_and_then_joins():
    model = double(second_after=3)
    run = Run(model, 8, decay=0.1)
    alone = Run(double(second_after=7), 8, decay=0.1)
    start = [(a.a2.clone(), a.b2.clone()) for a in pairs(model)]
    for step in range(1, 9):
        run.step()
        same = [
            torch.equal(a.a2, s[0]) and torch.equal(a.b2, s[1])
            for a, s in zip(pairs(model), start, strict=True)
        ]
        assert same == [step <= 3] * 4
        assert set(run.driver.schedule.ranks().values()) == {3 if step < 3 else 6}
        if step <= 7:
            alone.step()
        if step <= 4:  # the 4th step is the first whose gradients differ
            assert (run.norms == alone.norms) == (step <= 3)
    for adapter in pairs(model):
        assert run.optimizer.state[adapter.a1]["step"] == 8
        assert run.optimizer.state[adapter.a2]["step"] == 5, "its moments began when it joined"


def test_joining_changes_nothing_by_itself():
    for model, x in ((double(second_after=1), X), (words(second_after=1), torch.arange(9))):
        move(model)
        for adapter in pairs(model):  # the second pair as it starts
            nn.init.zeros_(adapter.a2 if adapter.lookup else adapter.b2)
        before = model(x)
        Driver(model, total=5).schedule.after_step(1)
        assert all(a.on == 1 for a in pairs(model))
        assert torch.equal(model(x), before)
        move(model, 2)
        assert not torch.equal(model(x), before)


def words(**settings) -> nn.Module:
    base = nn.Sequential(nn.Embedding(30, 12))
    return lorica.adapt(base, DoubleLora(r=4, **settings), target_modules="all")


def test_the_waiting_pair_acts_in_no_way():
    model = move(double(second_after=2))
    (first, *_) = pairs(model)
    a, b = first.factors()
    torch.testing.assert_close(b @ a, first.scale * first.b1 @ first.a1)
    model(X).sum().backward()
    assert first.a2.grad.abs().max() == first.b2.grad.abs().max() == 0
    assert first.a1.grad.abs().max() > 0


def test_the_penalty_and_what_it_does():
    model = move(double(orthogonality=0.5, second_after=2))
    schedule = Driver(model, total=9).schedule
    assert schedule.penalty(1) is None
    assert schedule.penalty(2) is None, "a pair that does not act is not pushed away from"
    want = sum((a.a1 @ a.a2.T).square().sum() for a in pairs(model))
    torch.testing.assert_close(schedule.penalty(3), 0.5 * want)
    overlaps = []
    for weight in (0.0, 3.0):
        run = Run(double(orthogonality=weight), 60)
        for _ in range(60):
            run.step()
        overlaps.append(max(a.overlap().item() for a in pairs(run.model)))
    assert overlaps[1] < 0.2 * overlaps[0]


def test_the_penalty_by_hand():
    model = lorica.adapt(nn.Sequential(nn.Linear(2, 2)), DoubleLora(r=2, orthogonality=2.0))
    (adapter,) = pairs(model)
    with torch.no_grad():
        adapter.a1.copy_(torch.tensor([[1.0, 2]]))
        adapter.a2.copy_(torch.tensor([[3.0, -1]]))
    penalty = Driver(model, total=1).schedule.penalty(1)
    assert penalty.item() == 2.0
    penalty.backward()
    assert adapter.a1.grad.tolist() == [[12, -4]], "2 * 2 * (A1 A2^T) A2"


@pytest.mark.parametrize("cut", [2, 3, 5])
def test_a_run_that_is_cut_goes_on_bit_for_bit(cut):
    def fresh() -> Run:
        return Run(double(second_after=3, orthogonality=0.1), 8, decay=0.01)

    whole, first, second = fresh(), fresh(), fresh()
    for _ in range(8):
        whole.step()
    for _ in range(cut):
        first.step()
    tensors = {k: t.detach().clone() for k, t in adapter_state(first.model).items()}
    load_adapter_state(second.model, tensors)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.driver.load_state(first.driver.state())
    for _ in range(8 - cut):
        second.step()
    want, got = adapter_state(whole.model), adapter_state(second.model)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) for k in want)


def test_it_is_saved_and_loaded_with_its_second_pair(tmp_path):
    run = Run(double(second_after=3), 8)
    for _ in range(6):
        run.step()
    lorica.save(run.model, tmp_path / "adapter")
    fresh = Stack()
    lorica.load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(X), run.model(X))
    assert all(a.on == 1 for a in pairs(fresh))


def test_trained_without_its_schedule_it_is_not_saved(tmp_path):
    model = double(second_after=3)
    for adapter in pairs(model):
        nn.init.normal_(adapter.b1)
    with pytest.raises(ConfigError, match="never driven"):
        lorica.save(model, tmp_path / "adapter")


def test_a_run_too_short_for_the_second_pair():
    with pytest.raises(ConfigError, match="never join") as error:
        Driver(double(second_after=5), total=5)
    assert "4" in str(error.value.fix)
    assert DoubleLora().schedule({}, 1, 1) is None, "by itself it needs no schedule"


@pytest.mark.parametrize("kind", ["bf16", "autocast"])
def test_bfloat16(kind):
    exact = move(double())
    want = exact(X)
    if kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            got = exact(X)
    else:
        short = lorica.adapt(Stack().bfloat16(), DoubleLora(r=6))
        load_adapter_state(short, adapter_state(exact))
        got = short(X)
        assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, atol=0.06, rtol=0.02)


def test_count_is_that_of_lora():
    ones = [
        lorica.trainable_parameters(lorica.adapt(llama(), m)).trainable
        for m in (Lora(r=5), DoubleLora(r=5), DoubleLora(r=5, second_r=1))
    ]
    assert len(set(ones)) == 1


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 1}, "double_lora.r"),
        ({"r": 0}, "double_lora.r"),
        ({"second_r": 0}, "second_r"),
        ({"second_r": 8}, "second_r"),
        ({"second_r": 2.5}, "second_r"),
        ({"second_scale_ratio": 0}, "second_scale_ratio"),
        ({"second_lr_ratio": -1}, "second_lr_ratio"),
        ({"second_lr_ratio": float("nan")}, "second_lr_ratio"),
        ({"second_after": -1}, "second_after"),
        ({"second_after": 1.5}, "second_after"),
        ({"orthogonality": -1}, "orthogonality"),
        ({"orthogonality": float("inf")}, "orthogonality"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init": "pissa"}, "init"),
        ({"init": "kaimin"}, "init"),
        ({"alpha": 0}, "alpha"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        DoubleLora(**settings)
    assert error.value.fix
