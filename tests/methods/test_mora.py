"""MoRA and ReMoRA: the vectors of the specification, brute-force updates, and resets in a run."""

import copy
import math

import pytest
import torch
from torch import nn

import lorica
from lorica.core.bank import attached
from lorica.core.drive import Driver
from lorica.core.site import sites_of
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError
from lorica.methods.mora import CYCLE, Mora, MoraAdapter
from tests.laws.bases import CASES, Stack
from tests.methods.llama import llama

STACK = CASES[0]
TYPES = [1, 2, 3, 4, 6]
SHAPES = [(5, 3), (3, 5), (8, 8), (12, 20), (20, 12), (7, 30), (30, 7), (2, 40), (40, 2)]
M = torch.tensor([[1.0, 2], [3, 4]])


def one(inputs: int, outputs: int, **settings) -> tuple[nn.Module, MoraAdapter]:
    """A layer of zeros without a bias, and its adapter."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    model = lorica.adapt(nn.Sequential(layer), Mora(**settings))
    (adapter,) = attached(model, "default").adapters.values()
    assert isinstance(adapter, MoraAdapter)
    return model, adapter


def put(adapter: MoraAdapter, m: torch.Tensor) -> None:
    """Give the adapter this M, of another size than its settings would give. In place."""
    n = len(m)
    adapter.m = nn.Parameter(m.clone())
    if adapter.form == 6:
        chunks = -(-adapter.inputs // n)
        slow = 10000.0 ** (-2 * torch.arange(n // 2) / n)
        angle = torch.outer(torch.arange(chunks).float(), slow).repeat(1, 2)
        adapter.cos, adapter.sin = angle.cos(), angle.sin()


def edges(size: int, n: int) -> list[int]:
    """Which of n groups of neighbours each of `size` coordinates is in; the first are larger."""
    small, more = divmod(size, n)
    groups = [[g] * (small + (g < more)) for g in range(n)]
    return [g for group in groups for g in group]


def written_out(m: torch.Tensor, inputs: int, outputs: int, form: int) -> torch.Tensor:
    """The update, one number after the other, in float64."""
    n, m = len(m), m.double()
    update = torch.zeros(outputs, inputs, dtype=torch.float64)
    chunks = -(-inputs // n)
    for k in range(chunks * n):
        column, (i, j) = k % inputs, divmod(k, n)
        if form == 6:
            half = n // 2
            angle = torch.tensor(i * 10000.0 ** (-2 * (j % half) / n), dtype=torch.float64)
            across = m[:, j + half] if j < half else -m[:, j - half]
            block = m[:, j] * angle.cos() + across * angle.sin()
            for row in range(outputs):
                if (row % (chunks * n)) // n == i:
                    update[row, column] += block[row % n]
            continue
        if form in (2, 3):
            if k >= inputs:
                continue
            j = edges(inputs, n)[k]
        for row in range(outputs):
            update[row, column] += m[row % n if form in (1, 3) else edges(outputs, n)[row], j]
    return update


@pytest.mark.parametrize(
    "inputs, outputs, r, even, rows",
    [
        (4096, 4096, 8, 256, 256),
        (4096, 11008, 8, 348, 348),
        (768, 768, 8, 110, 111),
        (768, 3072, 8, 174, 175),
        (4096, 4096, 256, 1448, 1448),
        (64, 64, 1, 10, 11),
    ],
    ids=str,
)
def test_rows_of_the_square(inputs, outputs, r, even, rows):
    with torch.device("meta"):
        for form, want in ((1, rows), (6, even)):
            layer = nn.Linear(inputs, outputs)
            model = lorica.adapt(nn.Sequential(layer), Mora(r=r, mora_type=form))
            (adapter,) = attached(model, "default").adapters.values()
            assert adapter.m.shape == (want, want)
    assert (inputs, outputs, r) != (4096, 4096, 8) or rows**2 == 65_536 == r * (inputs + outputs)


def test_type_1_by_hand():
    model, adapter = one(5, 3, r=1, mora_type=1)
    put(adapter, M)
    assert model(torch.tensor([1.0, 2, 3, 4, 5])).tolist() == [23, 55, 23]
    assert adapter.compress(torch.tensor([1.0, 2, 3, 4, 5]), 1).tolist() == [9, 7]
    want = [[3, 2, 1, 2, 1], [7, 4, 3, 4, 3], [3, 2, 1, 2, 1]]
    assert adapter.merged(torch.zeros(3, 5), None)[0].tolist() == want
    found = adapter.factors()
    assert found is not None
    assert (found[1] @ found[0]).tolist() == want


def test_type_6_by_hand():
    model, adapter = one(4, 4, r=1, mora_type=6)
    put(adapter, M)
    want = torch.tensor([1, 3, 2.2232443, 4.9867909])
    torch.testing.assert_close(model(torch.tensor([1.0, 0, 1, 0])), want)
    update = adapter.merged(torch.zeros(4, 4), None)[0]
    block = torch.tensor([[2.2232443, 0.2391336], [4.9867909, -0.3632037]])
    torch.testing.assert_close(update, torch.block_diag(M, block))


@pytest.mark.parametrize("inputs, outputs", SHAPES)
@pytest.mark.parametrize("form", TYPES)
def test_forward_merge_and_factors_are_the_update_written_out(form, inputs, outputs):
    model, adapter = one(inputs, outputs, r=1, mora_type=form)
    nn.init.normal_(adapter.m)
    update = written_out(adapter.m.detach(), inputs, outputs, form)
    x = torch.randn(6, inputs)
    torch.testing.assert_close(model(x), x @ update.float().T)
    merged, bias = adapter.merged(torch.ones(outputs, inputs), None)
    torch.testing.assert_close(merged, update.float() + 1)
    assert bias is None
    found = adapter.factors()
    assert (found is None) == (form == 6)
    if found is not None:
        assert found[0].shape == (len(adapter.m), inputs)
        torch.testing.assert_close(found[1] @ found[0], update.float())


@pytest.mark.parametrize("form", TYPES)
def test_the_rank_of_the_update(form):
    _, adapter = one(24, 16, r=1, mora_type=form)
    nn.init.normal_(adapter.m)
    rank = torch.linalg.matrix_rank(adapter.merged(torch.zeros(16, 24), None)[0])
    assert len(adapter.m) == 6
    assert rank == (16 if form == 6 else 6)


@pytest.mark.parametrize("form", TYPES)
def test_it_starts_as_the_base_and_learns_from_the_first_step(form):
    model = lorica.adapt(Stack(), Mora(r=2, mora_type=form))
    x = torch.randn(9, 12)
    assert torch.equal(model(x), Stack()(x))
    model(x).square().sum().backward()
    for adapter in attached(model, "default").adapters.values():
        assert adapter.m.grad.abs().max() > 0


def test_nothing_scales_the_update():
    with pytest.raises(TypeError, match="alpha"):
        Mora(alpha=16)
    with pytest.raises(ConfigError, match="alpha"):
        lorica.adapt(Stack(), Mora(), alpha_pattern={"up": 4})


def test_dropout_acts_on_the_input_in_training_alone():
    model, adapter = one(400, 4, r=1, mora_type=1, dropout=0.25)
    nn.init.ones_(adapter.m)
    x = torch.ones(500, 400)
    assert torch.equal(model.eval()(x), model(x))
    full, dropped = model(x).mean(), model.train()(x).mean()
    assert not torch.equal(model(x), model(x))
    assert abs(dropped / full - 1) < 0.01


@pytest.mark.parametrize("reset", [None, 5])
@pytest.mark.parametrize("form", TYPES)
def test_bfloat16_and_autocast(form, reset):
    if reset and form == 6:
        pytest.skip("type 6 has no resets")
    exact = lorica.adapt(Stack(), Mora(r=4, mora_type=form, reset_steps=reset))
    for adapter in attached(exact, "default").adapters.values():
        nn.init.normal_(adapter.m, std=0.1)
    x = torch.randn(9, 12)
    want = exact(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(exact(x).float(), want, atol=0.06, rtol=0.02)
    short = lorica.adapt(Stack().bfloat16(), Mora(r=4, mora_type=form, reset_steps=reset))
    load_adapter_state(short, adapter_state(exact))
    got = short(x)
    assert got.dtype == torch.bfloat16
    assert {t.dtype for t in adapter_state(short).values()} == {torch.float32}
    torch.testing.assert_close(got.float(), want, atol=0.06, rtol=0.02)


# -- ReMoRA -------------------------------------------------------------------------------------


def remora(form: int = 1, every: int = 3) -> nn.Module:
    return lorica.adapt(Stack(), Mora(r=2, mora_type=form, reset_steps=every))


class Run:
    """A loop of our own, as the trainer runs it."""

    def __init__(self, model: nn.Module, total: int):
        self.model, self.driver = model, Driver(model, total=total)
        self.tensors = {k: t for k, t in adapter_state(model).items() if t.requires_grad}
        self.optimizer = torch.optim.AdamW(self.tensors.values(), lr=1e-2)

    def step(self) -> None:
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(self.driver.t))
        (self.model(x).square().mean() + self.driver.penalty()).backward()
        self.driver.before_step()
        self.optimizer.step()
        self.driver.after_step()
        for name in self.driver.schedule.fresh():
            self.optimizer.state.pop(self.tensors[name])
        self.optimizer.zero_grad()


def square(adapter: MoraAdapter) -> torch.Tensor:
    return torch.stack(adapter.squares())


@pytest.mark.parametrize("form", CYCLE)
def test_a_reset_keeps_what_was_learned_to_the_bit(form):
    model = remora(form, every=1)
    schedule = Driver(model, total=9).schedule
    x = torch.randn(4, 12)
    for t in range(1, 6):
        for adapter in attached(model, "default").adapters.values():
            nn.init.normal_(adapter.m)
        before = model(x)
        schedule.after_step(t)
        assert torch.equal(model(x), before)
        for adapter in attached(model, "default").adapters.values():
            assert adapter.m.abs().max() == 0
            assert adapter.turn.tolist() == [float(k == (form - 1 + t) % 4) for k in range(4)]


def test_the_types_take_turns_and_add_up():
    model, adapter = one(24, 16, r=1, mora_type=3, reset_steps=2)
    schedule, want = Driver(model, total=99).schedule, torch.zeros(16, 24, dtype=torch.float64)
    for t, form in ((2, 3), (4, 4), (6, 1), (8, 2), (10, 3)):
        nn.init.normal_(adapter.m)
        want += written_out(adapter.m.detach(), 24, 16, form)
        schedule.after_step(t)
    nn.init.normal_(adapter.m)
    want += written_out(adapter.m.detach(), 24, 16, 4)
    got = adapter.merged(torch.zeros(16, 24), None)[0]
    torch.testing.assert_close(got, want.float())
    a, b = adapter.factors()
    torch.testing.assert_close(b @ a, want.float())
    assert a.shape == (24, 24), "four forms of rank 6"
    assert torch.linalg.matrix_rank(got) > 6, "a reset raises the rank"
    torch.testing.assert_close(model(torch.eye(24)).T, want.float())


def test_when_it_resets_and_what_starts_anew():
    model = remora(every=3)
    run, seen = Run(model, 8), []
    for _ in range(8):
        run.step()
        fresh = list(run.driver.schedule.fresh())
        ages = {int(run.optimizer.state.get(t, {"step": 0})["step"]) for t in run.tensors.values()}
        seen.append((bool(fresh), ages))
        assert not fresh or fresh == [n for n in run.tensors if n.endswith(".m")]
    assert seen == [
        (False, {1}),
        (False, {2}),
        (True, {0}),
        (False, {1}),
        (False, {2}),
        (True, {0}),
        (False, {1}),
        (False, {2}),
    ]
    assert run.driver.schedule.facts() == {"resets": 2}
    assert run.driver.schedule.state() == {}


def test_a_run_that_is_cut_goes_on_bit_for_bit():
    whole = Run(remora(), 9)
    for _ in range(9):
        whole.step()
    first = Run(remora(), 9)
    for _ in range(4):
        first.step()
    tensors = {k: t.detach().clone() for k, t in adapter_state(first.model).items()}
    second = Run(remora(), 9)
    load_adapter_state(second.model, tensors)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.driver.load_state(first.driver.state())
    for _ in range(5):
        second.step()
    want, got = adapter_state(whole.model), adapter_state(second.model)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert any(k.endswith(".kept") for k in want)


def test_remora_is_saved_and_loaded_with_its_turn(tmp_path):
    run = Run(remora(), 9)
    for _ in range(7):
        run.step()
    lorica.save(run.model, tmp_path / "adapter")
    fresh = Stack()
    lorica.load(fresh, tmp_path / "adapter")
    x = torch.randn(3, 12)
    assert torch.equal(fresh(x), run.model(x))
    for adapter in attached(fresh, "default").adapters.values():
        assert adapter.turn.tolist() == [0, 0, 1, 0]
    lorica.merge(fresh)
    torch.testing.assert_close(fresh(x), run.model(x))


@pytest.mark.slow
def test_remora_compiles_whole_before_and_after_a_reset():
    torch._dynamo.reset()
    run = Run(remora(), 9)
    compiled = torch.compile(run.model, backend="aot_eager", fullgraph=True)
    for _ in range(4):
        run.step()
        torch.testing.assert_close(STACK.run(compiled), STACK.run(run.model))


def test_a_run_too_short_for_a_reset():
    model = remora(every=10)
    with pytest.raises(ConfigError, match="has 10 steps") as error:
        Driver(model, total=10)
    assert "9" in str(error.value.fix)
    Driver(model, total=11)
    assert Mora().schedule({}, 1, 1) is None


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"r": 0}, "mora.r"),
        ({"r": 2.5}, "mora.r"),
        ({"mora_type": 5}, "mora_type"),
        ({"mora_type": "6"}, "mora_type"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -1}, "dropout"),
        ({"reset_steps": 0, "mora_type": 1}, "reset_steps"),
        ({"reset_steps": 1.5, "mora_type": 1}, "reset_steps"),
        ({"reset_steps": 5}, "mora_type 1 to 4"),
    ],
    ids=str,
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Mora(**settings)
    assert error.value.fix


@pytest.mark.parametrize("form", TYPES)
@pytest.mark.parametrize("r", [1, 4, 7])
def test_what_it_trains_is_counted_in_closed_form(form, r):
    model, want = llama(), 0
    for site in sites_of(model):
        n = int(math.sqrt((site.in_features + site.out_features) * r) + 0.5)
        want += 0 if site.is_head else (n - n % 2 if form == 6 else n) ** 2
    lorica.adapt(model, Mora(r=r, mora_type=form))
    assert lorica.trainable_parameters(model).trainable == want
