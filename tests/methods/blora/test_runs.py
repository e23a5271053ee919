"""B-LoRA: whole runs, resuming, rounded activations and the settings."""

import copy
import math

import pytest
import torch
from torch import nn

import lorica
from lorica.core.drive import Driver
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError, MergeError
from lorica.methods.blora import Blora
from tests.laws.bases import Stack, move
from tests.methods.blora.driving import Run, X, adapters, first, fresh
from tests.methods.llama import llama


@pytest.mark.parametrize("cut", [1, 4])
def test_a_run_that_is_cut_goes_on_bit_for_bit(cut):
    settings = {"gate_start": 0.5, "gate_lr": 0.05}

    def begun() -> Run:
        return Run(fresh(**settings), 7, **settings)

    whole, one, two = begun(), begun(), begun()
    for _ in range(7):
        whole.step()
    for _ in range(cut):
        one.step()
    tensors = {k: t.detach().clone() for k, t in adapter_state(one.model).items()}
    load_adapter_state(two.model, tensors)
    two.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))
    two.driver.load_state({k: t.clone() for k, t in one.driver.state().items()})
    for _ in range(7 - cut):
        two.step()
    want, got = adapter_state(whole.model), adapter_state(two.model)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) for k in want)
    with pytest.raises(KeyError):
        two.driver.schedule.load_state({})


def test_micro_batches_see_the_same_gates():
    settings = {"gate_start": 0.5}
    runs = [Run(fresh(**settings).double(), 5, micro=m, **settings) for m in (1, 4)]
    for run in runs:
        run.driver.schedule.after_step(3)
    inputs = torch.randn(8, 12, dtype=torch.float64)
    whole, parts = runs
    want = whole.model.train()(inputs)
    got = torch.cat([parts.model.train()(x) for x in inputs.chunk(4)])
    torch.testing.assert_close(got, want)


def test_checkpointing_sees_the_same_gates():
    grads = []
    for checkpointed in (False, True):
        model = fresh(base=Stack(checkpointed=checkpointed), gate_start=0.3)
        Driver(model, total=9).schedule.after_step(2)
        model.train()(X).square().sum().backward()
        grads.append([p.grad for a in adapters(model) for p in a.parameters()])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("acts", [False, True])
def test_it_compiles_whole_in_both_directions(acts):
    torch._dynamo.reset()
    model = fresh(gate_start=0.3, quantise_activations=acts).train()
    schedule = Driver(model, total=9).schedule
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for t in (1, 2):
        schedule.after_step(t)
        grads = []
        for m in (model, compiled):
            m(X).square().sum().backward()
            grads.append([p.grad.clone() for a in adapters(model) for p in a.parameters()])
            model.zero_grad()
        for one, two in zip(*grads, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_it_is_saved_and_loaded_and_merged(tmp_path):
    settings = {"gate_start": 1.0, "penalty": 0.3, "gate_lr": 0.1}
    run = Run(fresh(**settings), 25, **settings)
    for _ in range(25):
        run.step()
    want = run.model.eval()(X)
    lorica.save(run.model, tmp_path / "adapter")
    other = Stack().eval()
    lorica.load(other, tmp_path / "adapter")
    assert torch.equal(other(X), want)
    lorica.merge(other)
    torch.testing.assert_close(other(X), want, atol=1e-5, rtol=1e-5)


def test_trained_without_its_schedule_it_is_not_saved(tmp_path):
    model = fresh()
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(0.1)
    with pytest.raises(ConfigError, match="never driven"):
        lorica.save(model, tmp_path / "adapter")
    lorica.save(fresh(), tmp_path / "untrained")


@pytest.mark.parametrize("prune_rank", [True, False])
def test_rounded_activations(prune_rank):
    model = fresh(quantise_activations=True, prune_rank=prune_rank)
    plain = fresh(prune_rank=prune_rank)
    close = model.eval()(X)
    torch.testing.assert_close(close, plain.eval()(X), atol=1e-4, rtol=1e-4)
    assert not torch.equal(close, plain(X))
    grids = ["a", "b", "e", "a_x", "b_x", "e_x"] if prune_rank else ["a", "b", "a_x", "b_x"]
    found = Driver(model, total=5).schedule.facts()["bits"]["layers.0.up"]
    assert list(found) == grids
    with torch.no_grad():
        for adapter in adapters(model):
            adapter.gates[grids.index("b_x") * 3] = -1.0  # B's output on 2 bits
    branch = first(model).after(X, torch.zeros(8, 20), nn.Identity()) / first(model).scale
    levels = branch / (branch.abs().amax(-1, keepdim=True))
    assert {round(v, 4) for v in levels.unique().tolist()} <= {-1.0, 0.0, 1.0}
    assert first(model).factors() is None
    with pytest.raises(MergeError, match="affine"):
        lorica.merge(model)


def test_a_token_does_not_depend_on_those_beside_it():
    model = fresh(quantise_activations=True).eval().double()
    with torch.no_grad():
        for adapter in adapters(model):
            adapter.gates[: adapter.split[0]].view(6, 3)[3:, 1] = -1.0  # they are on 4 bits
    together = model(X.double())
    alone = torch.cat([model(row) for row in X.double().split(1)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("acts", [False, True])
def test_bfloat16_and_autocast(acts):
    exact = move(fresh(quantise_activations=acts)).eval()
    want = exact(X)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(exact(X).float(), want, atol=0.06, rtol=0.02)
    short = fresh(base=Stack().bfloat16(), quantise_activations=acts).eval()
    load_adapter_state(short, adapter_state(exact))
    assert short(X).dtype == torch.bfloat16
    torch.testing.assert_close(short(X).float(), want, atol=0.06, rtol=0.02)
    assert {t.dtype for t in adapter_state(short).values()} == {torch.float32}
    short.train()(X).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for a in adapters(short) for p in a.parameters())


def test_a_high_rate_turns_no_step_negative():
    settings = {"scale_lr": 1.0}
    run = Run(fresh(**settings), 12, lr=0.1, **settings)
    for _ in range(12):
        run.step()
    assert all(math.isfinite(loss) for loss in run.losses)
    assert all((a.log_steps.exp() > 0).all() for a in adapters(run.model))


def test_the_count_of_the_table():
    model = llama()
    shapes = [
        (m.in_features, m.out_features)
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and "lm_head" not in n
    ]
    want = sum(5 * (i + o + 2) + 11 for i, o in shapes)
    assert Blora.count == "r * (I + O + 2) + 11"
    lorica.adapt(model, Blora(r=5))
    assert lorica.trainable_parameters(model).trainable == want


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 0}, "blora.r"),
        ({"r": 1.5}, "blora.r"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"dropout": 1}, "dropout"),
        ({"n_bits": 2}, "n_bits"),
        ({"n_bits": 12}, "n_bits"),
        ({"penalty": -1}, "penalty"),
        ({"penalty": math.nan}, "penalty"),
        ({"cost": "macs"}, "cost"),
        ({"gate_start": math.inf}, "gate_start"),
        ({"gate_lr": 0}, "gate_lr"),
        ({"scale_lr": -0.1}, "scale_lr"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Blora(**settings)
    assert error.value.fix
