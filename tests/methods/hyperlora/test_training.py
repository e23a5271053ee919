"""HyperLoRA: a condition as a LoRA, files, training, the penalty, generation."""

import copy
import random

import pytest
import torch

import lorica
from lorica import Lora
from lorica.core.bank import attached
from lorica.core.condition import (
    set_conditions,
    swapped_conditions,
    with_conditions,
)
from lorica.core.drive import Driver
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError, MergeError
from lorica.methods.hyperlora import Hyperlora
from lorica.methods.hyperlora.penalty import MAX_CONDITIONS
from tests.laws.bases import IDS, Stack, bits, move, same_bits
from tests.methods.hyperlora.driving import TASKS, X, at, made, network
from tests.methods.llama import llama


def test_a_condition_as_factors_equals_the_forward(moved):
    for task in TASKS:
        with with_conditions(moved, [task]):
            want = moved(X)
            pairs = {n: a.factors() for n, a in attached(moved, "default").adapters.items()}
        plain = lorica.adapt(Stack(), Lora(r=3, alpha=3))
        with torch.no_grad():
            for name, adapter in attached(plain, "default").adapters.items():
                adapter.a.copy_(pairs[name][0])
                adapter.b.copy_(pairs[name][1])
        torch.testing.assert_close(plain(X), want)
    set_conditions(moved, TASKS)
    assert next(iter(attached(moved, "default").adapters.values())).factors() is None


@pytest.mark.parametrize("task", TASKS)
def test_merging_one_condition(moved, task):
    want = at(moved, [task])
    set_conditions(moved, [task])
    lorica.merge(moved)
    torch.testing.assert_close(moved(X), want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("conditions", [None, TASKS], ids=["none", "several"])
def test_merging_without_one_condition_is_refused(moved, conditions):
    set_conditions(moved, conditions)
    before = bits(moved)
    with pytest.raises(MergeError, match="another weight for each condition") as error:
        lorica.merge(moved)
    assert "--condition" in error.value.fix
    assert same_bits(before, bits(moved))


def test_a_loaded_adapter_knows_its_conditions(moved, tmp_path):
    want = at(moved, ["turn", "add", "sort"])
    lorica.save(moved, tmp_path / "adapter")
    fresh = Stack()
    assert lorica.load(fresh, tmp_path / "adapter") == []
    assert torch.equal(at(fresh, ["turn", "add", "sort"]), want)
    with pytest.raises(ConfigError, match="none is set"):
        fresh(X)
    files = adapter_state(moved)
    assert len(files) == len({id(t) for t in files.values()})
    assert {key.rpartition(".network.")[0] for key in files} == {"layers.0.up"}, "stored once"


TURNS = [torch.randn(12, 12, generator=torch.Generator().manual_seed(i)) / 3 for i in range(3)]


def batch(step: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Rows whose target is another map of x for each task."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(6, 4, 12, generator=generator)
    which = [random.Random(step * 10 + i).randrange(3) for i in range(6)]
    y = torch.stack([row @ TURNS[i] for row, i in zip(x, which, strict=True)])
    return x, [TASKS[i] for i in which], y


class Run:
    """A few steps of training on `batch`, which can be stopped and taken up."""

    def __init__(self, total: int, **settings):
        self.model = made(r=6, hidden=16, latent=32, **settings).train()
        self.tensors = {k: t for k, t in adapter_state(self.model).items() if t.requires_grad}
        self.driver = Driver(self.model, total=total)
        self.optimizer = torch.optim.AdamW(self.tensors.values(), lr=5e-3)

    def to(self, last: int) -> "Run":
        while self.driver.t < last:
            x, tasks, y = batch(self.driver.t)
            set_conditions(self.model, tasks)
            loss = (self.model(x) - y).square().mean() + self.driver.penalty()
            loss.backward()
            self.driver.before_step()
            self.optimizer.step()
            self.driver.after_step()
            self.optimizer.zero_grad()
        return self

    def loss(self, swap: bool = False) -> float:
        x, tasks, y = batch(-1)
        with (
            torch.no_grad(),
            with_conditions(self.model, swapped_conditions(tasks) if swap else tasks),
        ):
            return (self.model(x) - y).square().mean().item()


def test_the_condition_is_used():
    run = Run(120)
    start = run.loss()
    run.to(120)
    assert run.loss() < 0.6 * start
    assert run.loss(swap=True) > 2 * run.loss()


def test_a_resumed_run_is_the_same_run():
    whole, first = Run(8).to(8), Run(8).to(3)
    second = Run(8)
    load_adapter_state(second.model, adapter_state(first.model))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.driver.load_state({k: t.clone() for k, t in first.driver.state().items()})
    second.to(8)
    for key, tensor in whole.tensors.items():
        assert torch.equal(tensor, second.tensors[key]), key


def test_the_penalty_by_hand():
    """The mean over the layers of a type and the tasks, the sum over the types: `up` and `down`."""
    model = move(made(penalty=0.25), size=0.2)
    driver = Driver(model, total=5)
    by_type: dict[str, list[torch.Tensor]] = {"up": [], "down": []}
    for task in TASKS:
        with with_conditions(model, [task]):
            for site, adapter in attached(model, "default").adapters.items():
                a, b = adapter.factors()
                size = a.square().mean() + (b / adapter.scale).square().mean()
                by_type[site.rpartition(".")[2]].append(size)
    want = 0.25 * sum(torch.stack(sizes).mean() for sizes in by_type.values())
    torch.testing.assert_close(driver.penalty(), want)
    loss = driver.penalty()
    loss.backward()
    assert all(p.grad is not None for p in network(model).parameters())


def test_the_penalty_does_not_depend_on_the_rows_at_hand(moved):
    driver = Driver(moved, total=5)
    want = driver.penalty()
    set_conditions(moved, ["add", "add", "sort"])
    assert torch.equal(driver.penalty(), want)
    assert Driver(made(penalty=0.0), total=5).penalty() == 0.0


def test_the_penalty_goes_through_many_conditions_in_turn():
    many = tuple(f"task {i:02}" for i in range(2 * MAX_CONDITIONS + 3))
    model = made(conditions=many, penalty=1.0)
    seen: list[int] = []
    network(model).enc.vectors.register_forward_hook(
        lambda _, args, out: seen.extend(args[0].flatten().tolist())
    )
    driver = Driver(model, total=10)
    for _ in range(3):
        driver.penalty()
        driver.before_step()
        driver.after_step()
    heads = 2
    assert len(seen) == 3 * MAX_CONDITIONS * heads
    assert set(seen) == set(range(len(many)))


def test_embeddings_are_held_small_where_they_are_set():
    model = made(condition="embedding", width=2, conditions=(), penalty=1.0)
    driver = Driver(model, total=5)
    assert driver.penalty() == 0.0
    set_conditions(model, ["[1.0, 2.0]"])
    assert driver.penalty() > 0


def test_a_real_model_generates_under_several_conditions():
    """With the key-value cache, each row's text is that of its condition alone."""
    model = move(lorica.adapt(llama(), Hyperlora(r=4, conditions=TASKS)), size=0.1)
    options = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(IDS),
    }
    alone = []
    for row, task in enumerate(("turn", "add")):
        with with_conditions(model, [task]):
            one = {**options, "attention_mask": torch.ones_like(IDS[:1])}
            alone.append(model.generate(IDS[row : row + 1], **one)[0].tolist())
    with with_conditions(model, ["turn", "add"]):
        assert model.generate(IDS, **options).tolist() == alone
    with with_conditions(model, ["add", "turn"]):
        assert model.generate(IDS, **options).tolist() != alone
