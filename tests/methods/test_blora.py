"""B-LoRA: how it starts, what its gates do in training and afterwards, its penalty, its runs."""

import copy
import math

import pytest
import torch
from torch import nn

import lorica
from lorica.core.bank import attached
from lorica.core.drive import Driver
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError, MergeError
from lorica.kernels import bits
from lorica.methods.blora import Blora, BloraAdapter
from tests.laws.bases import Stack, move
from tests.methods.llama import llama

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))


def fresh(seed: int = 0, base: nn.Module | None = None, **settings) -> nn.Module:
    return lorica.adapt(base or Stack(), Blora(**{"r": 4, **settings}), seed=seed)


def adapters(model: nn.Module) -> list[BloraAdapter]:
    return list(attached(model, "default").adapters.values())  # type: ignore[arg-type]


def first(model: nn.Module) -> BloraAdapter:
    return adapters(model)[0]


class Run:
    """A loop of our own, as the trainer runs it."""

    def __init__(self, model: nn.Module, total: int, lr: float = 1e-2, micro: int = 1, **settings):
        self.model, self.driver, self.micro = model, Driver(model, total=total), micro
        self.tensors = {k: t for k, t in adapter_state(model).items() if t.requires_grad}
        method = Blora(**{"r": 4, **settings})
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [t], "lr": method.learning_rate(k.rpartition(".")[2], lr)}
                for k, t in self.tensors.items()
            ],
            weight_decay=0.0,
        )
        self.losses: list[float] = []

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.driver.t)
        loss = torch.zeros(())
        for x in torch.randn(8, 12, generator=generator).chunk(self.micro):
            loss = loss + (self.model.train()(x) - 1).square().sum()
        self.losses.append(loss.item())
        (loss / 100 + self.driver.penalty()).backward()
        self.driver.before_step()
        self.optimizer.step()
        self.driver.after_step()
        self.optimizer.zero_grad()


def put(adapter: BloraAdapter, a=(), b=(), e=(), ranks=()) -> None:
    """Set gates, those that are given. In place."""
    n = adapter.split[0] // len(adapter.sizes)
    with torch.no_grad():
        for i, values in enumerate((a, b, e)):
            if values:
                adapter.gates[i * n : (i + 1) * n] = torch.tensor(values)
        if ranks:
            adapter.gates[adapter.split[0] :] = torch.tensor(ranks)


# -- start --------------------------------------------------------------------------------------


def test_how_it_starts():
    model = fresh(base=nn.Sequential(nn.Linear(400, 300)), r=64)
    adapter = first(model)
    assert adapter.a.std().item() == pytest.approx(0.02, rel=0.02)
    assert adapter.b.std().item() == pytest.approx(0.02, rel=0.02)
    assert 0.75 < adapter.e.std().item() < 1.25
    assert adapter.gates.unique().tolist() == [6]
    assert adapter.gates.shape == (3 * 3 + 63,)
    largest = [t.abs().max().item() / bits.EDGE for t in (adapter.a, adapter.b, adapter.e)]
    assert adapter.log_steps.exp().tolist() == pytest.approx(largest)


@pytest.mark.parametrize("prune_rank", [True, False])
def test_it_starts_as_the_base_when_told_so(prune_rank):
    x, base = X, Stack()(X)
    assert (fresh(prune_rank=prune_rank)(x) - base).abs().max() > 1e-3
    model = fresh(prune_rank=prune_rank, zero_start=True)
    assert torch.equal(model(x), base)
    model(x).sum().backward()
    adapter = first(model)
    assert (adapter.e if prune_rank else adapter.b).grad.abs().max() > 0
    assert all(a.log_steps.isfinite().all() for a in adapters(model)), "no range of zeros"


def test_scale():
    assert first(fresh()).scale == 2
    assert first(fresh(alpha=1)).scale == 0.25


def test_rates_of_learning():
    method = Blora(gate_lr=0.03, scale_lr=0.2)
    rates = {key: method.learning_rate(key, 1e-4) for key in ("a", "b", "e", "gates", "log_steps")}
    assert rates == {"a": 1e-4, "b": 1e-4, "e": 1e-4, "gates": 0.03, "log_steps": 0.2}


@pytest.mark.parametrize("n_bits, gates", [(4, 1), (8, 2), (16, 3), (32, 4)])
@pytest.mark.parametrize("prune_rank", [True, False])
@pytest.mark.parametrize("acts", [True, False])
def test_what_it_trains_is_counted_in_closed_form(n_bits, gates, prune_rank, acts):
    model = fresh(n_bits=n_bits, prune_rank=prune_rank, quantise_activations=acts)
    weights = 3 if prune_rank else 2
    extra = (4 + 3 if prune_rank else 0) + weights + (2 if acts else 1) * weights * gates
    want = 4 * (4 * (12 + 20) + extra)
    assert lorica.trainable_parameters(model).trainable == want


# -- what the gates do --------------------------------------------------------------------------


def test_all_gates_open_at_16_bits_is_nearly_the_plain_product():
    model = fresh()
    adapter = first(model)
    plain = adapter.scale * adapter.b @ torch.diag(adapter.e) @ adapter.a
    a, b = adapter.factors()
    torch.testing.assert_close(b @ a, plain, atol=1e-6, rtol=1e-3)
    layer = model.layers[0]["up"]
    torch.testing.assert_close(layer(X), Stack().layers[0]["up"](X) + X @ (b @ a).T)


def test_each_tensor_has_the_bits_that_its_gates_say():
    model = fresh(r=8, base=nn.Sequential(nn.Linear(40, 30)))
    adapter = first(model.eval())
    put(adapter, a=[-1.0, 6, 6], b=[6.0, 6, -1], e=[6.0, -1, 6])
    schedule = Driver(model, total=5).schedule
    assert schedule.facts() == {"bits": {"0": {"a": 2, "b": 8, "e": 4}}}
    a, b, e = adapter.rounded(*adapter.open_gates(None))
    steps = adapter.log_steps.exp() / torch.tensor([1, 5 * 17, 5])
    for rounded, step, levels in zip((a, b, e), steps, (3, 255, 15), strict=True):
        codes = rounded / step
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
        assert codes.unique().numel() <= levels
        assert codes.abs().max() > 0
    up, down = adapter.factors()
    torch.testing.assert_close(down @ up, adapter.scale * b @ torch.diag(e) @ a)
    torch.testing.assert_close(
        model(torch.eye(40)) - model[0].bias - model[0].weight.T,
        (down @ up).T,
        atol=1e-6,
        rtol=1e-5,
    )


def test_ranks_are_a_prefix():
    model = fresh(r=5)
    schedule = Driver(model, total=5).schedule
    assert set(schedule.ranks().values()) == {5}
    put(adapters(model)[0], ranks=[6.0, -1, 6, 6])
    put(adapters(model)[1], ranks=[-1.0, 6, 6, 6])
    assert list(schedule.ranks().values()) == [2, 1, 5, 5]
    a, b = adapters(model)[0].factors()
    assert (a.shape, b.shape) == ((2, 12), (20, 2))
    x, before = X, model.eval()(X)
    with torch.no_grad():
        adapters(model)[0].a[2:] += 1
        adapters(model)[0].e[2:] += 1
    assert torch.equal(model(x), before), "what lies past the prefix is out of use"
    assert fresh(r=1).train()(x).isfinite().all()
    assert set(Driver(fresh(r=1), total=5).schedule.ranks().values()) == {1}
    assert set(Driver(fresh(r=5, prune_rank=False), total=5).schedule.ranks().values()) == {5}


def test_gates_are_drawn_in_training_and_fixed_afterwards():
    model = fresh(gate_start=0.0)
    schedule = Driver(model, total=9).schedule
    model.train()
    assert torch.equal(model(X), model(X)), "one draw for all passes of a step"
    median = model(X)
    draws = [median]
    for t in (1, 2):
        schedule.after_step(t)
        draws.append(model(X))
        assert not torch.equal(draws[-1], draws[-2])
    model.eval()
    settled = model(X)
    schedule.after_step(3)
    assert torch.equal(model(X), settled)
    assert not torch.equal(settled, median)


def test_what_the_gates_of_a_step_are():
    model = fresh(gate_start=0.5)
    adapter = first(model)
    Driver(model, total=9).schedule.after_step(4)
    noise = bits.noise(9 + 3, adapter.seed + 4)
    assert torch.equal(adapter.noise, noise)
    u = torch.sigmoid(noise)
    z = (torch.sigmoid(((u / (1 - u)).log() + 0.5) * 1.5) * 1.2 - 0.1).clamp(0, 1)
    grids, ranks = adapter.open_gates(adapter.noise)
    torch.testing.assert_close(torch.cat([*grids.values()]), z[:9], atol=1e-5, rtol=1e-5)
    want = [1, *z[9:].cumprod(0).round().tolist()]
    assert ranks.tolist() == want
    assert len({a.seed for a in adapters(model)}) == 4, "sites draw apart"
    assert [a.seed for a in adapters(fresh())] == [a.seed for a in adapters(fresh())]
    assert first(fresh(seed=1)).seed != adapter.seed


def test_a_gate_that_is_off_stays_off_in_training():
    model = fresh()
    put(first(model), a=[6.0, -2, 6])
    schedule = Driver(model, total=99).schedule
    for t in range(1, 40):
        schedule.after_step(t)
        z = first(model).open_gates(first(model).noise)[0]["a"]
        assert z[1] == z[2] == 0
        assert z[0] > 0


def test_gradients_pass_through_the_rounding():
    """Those of A, B and E are those of the rounded product, as if nothing were rounded."""
    model = fresh()
    adapter, x = first(model), X
    with torch.no_grad():
        adapter.a *= 5  # past the range that its grid began with
        adapter.e *= 5
    a, b, e = (t.detach().requires_grad_() for t in adapter.rounded(*adapter.open_gates(None)))
    weight = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    branch = adapter.after(x, torch.zeros(8, 20), nn.Identity())
    (branch * weight).sum().backward()
    (adapter.scale * (x @ a.T * e) @ b.T * weight).sum().backward()
    for mine, plain in ((adapter.a, a), (adapter.b, b), (adapter.e, e)):
        torch.testing.assert_close(mine.grad, plain.grad, atol=1e-6, rtol=1e-5)
    assert adapter.log_steps.grad.abs().max() > 0
    assert adapter.gates.grad.abs().max() == 0, "saturated: the penalty alone moves them yet"
    soft = fresh(gate_start=0.0)
    soft(x).square().sum().backward()
    assert all(a.gates.grad.abs().max() > 0 for a in adapters(soft))


# -- the penalty --------------------------------------------------------------------------------


@pytest.mark.parametrize("prune_rank, acts", [(True, False), (False, False), (True, True)])
def test_the_penalty_by_hand(prune_rank, acts):
    q = 0.9994991
    chain = 1 + q + q**2 + q**3
    grids = (3 if prune_rank else 2) * (2 if acts else 1)
    want = (grids - prune_rank) * chain + prune_rank * q * chain
    model = fresh(penalty=0.01, prune_rank=prune_rank, quantise_activations=acts)
    found = Driver(model, total=9).schedule.penalty(1)
    assert found.item() == pytest.approx(0.01 * 4 * want, rel=1e-5)


def test_the_penalty_of_bits_counts_multiplications():
    """12 to 20 features, r = 4: A 48, B 80, E 4 multiplications; 20 to 12 the other way round."""
    q = 0.9994991
    chain = 2 + 4 * q + 8 * q**2 + 16 * q**3
    found = Driver(fresh(cost="bits", penalty=1.0), total=9).schedule.penalty(1)
    want = 4 * chain * (48 + 80 + q * 4) / 80
    assert found.item() == pytest.approx(want, rel=1e-5)
    assert Driver(fresh(), total=9).schedule.largest == 0


def test_it_falls_with_every_gate():
    model = fresh(r=3)
    schedule, adapter = Driver(model, total=9).schedule, first(model)
    penalty = schedule.penalty(1)
    penalty.backward()
    assert (adapter.gates.grad > 0).all()
    for i in range(len(adapter.gates)):
        with torch.no_grad():
            adapter.gates[i] -= 1.0
        assert schedule.penalty(1) < penalty
        with torch.no_grad():
            adapter.gates[i] += 1.0


def test_bits_and_ranks_fall_where_they_cost_more_than_they_bring():
    settings = {"penalty": 0.3, "gate_start": 2.0, "gate_lr": 0.1}
    dear = Run(fresh(r=8, **settings), 80, **settings)
    free = Run(fresh(r=8, **settings | {"penalty": 0.0}), 80, **settings)
    for _ in range(80):
        dear.step(), free.step()
    widths = []
    for run in (dear, free):
        schedule = run.driver.schedule
        widths.append([n for grids in schedule.facts()["bits"].values() for n in grids.values()])
        assert set(schedule.ranks()) == {f"layers.{i}.{k}" for i in (0, 1) for k in ("up", "down")}
    assert sum(widths[0]) < sum(widths[1]) / 2
    assert sum(dear.driver.schedule.ranks().values()) < sum(free.driver.schedule.ranks().values())
    assert free.losses[-1] < free.losses[0] * 0.9, "it learns"


# -- runs ---------------------------------------------------------------------------------------


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


# -- rounded activations ------------------------------------------------------------------------


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
