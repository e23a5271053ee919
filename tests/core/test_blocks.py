"""`use`, `mixed` and `activate` in each other and in several threads: the innermost block wins."""

import copy
import pickle
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import permutations, product

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica.core.bank import bank_of
from lorica.core.blocks import innermost
from lorica.core.draws import drawing
from lorica.core.state import adapter_state
from lorica.errors import ConfigError
from tests.laws.bases import Stack

X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(7))
ROWS = ("a", None, "b")


def moved(model: nn.Module, name: str, seed: int, method: lorica.Lora | lorica.Full) -> None:
    lorica.adapt(model, method, name=name, target_modules=["up", "down"])
    with torch.no_grad(), drawing(seed):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 4)


def two(first: lorica.Lora | lorica.Full | None = None) -> nn.Module:
    """A model with adapters a and b; a is the active one."""
    model = Stack()
    moved(model, "a", 1, first or lorica.Lora(r=2))
    moved(model, "b", 2, lorica.Lora(r=2))
    lorica.activate(model, "a")
    return model


def outputs(model: nn.Module) -> dict[str, Tensor]:
    """What X gives under each choice, one at a time."""
    results = {}
    for name, names in {"base": (), "a": ("a",), "b": ("b",), "both": ("a", "b")}.items():
        lorica.activate(model, *names)
        results[name] = model(X).detach()
    lorica.activate(model, "a")
    base, a, b = results["base"], results["a"], results["b"]
    return {**results, "rows": torch.stack([a[0], base[1], b[2]])}


BLOCKS: dict[str, Callable] = {
    "base": lambda m: lorica.use(m),
    "a": lambda m: lorica.use(m, "a"),
    "b": lambda m: lorica.use(m, "b"),
    "both": lambda m: lorica.use(m, "a", "b"),
    "rows": lambda m: lorica.mixed(m, ROWS),
}


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kinds", ["-".join(p) for p in product(BLOCKS, repeat=3)])
def test_the_innermost_block_wins(kinds):
    model = two()
    want = outputs(model)
    first, second, third = kinds.split("-")
    with BLOCKS[first](model):
        assert near(model(X), want[first])
        with BLOCKS[second](model):
            with BLOCKS[third](model):
                assert near(model(X), want[third])
            assert near(model(X), want[second])
        with pytest.raises(KeyError), BLOCKS[third](model):
            raise KeyError
        assert near(model(X), want[first])
    assert torch.equal(model(X), want["a"])
    assert innermost(bank_of(model)) is None


@pytest.mark.parametrize("outer", BLOCKS)
@pytest.mark.parametrize("names", [(), ("b",), ("a", "b")], ids=["base", "b", "both"])
def test_activate_acts_inside_a_block_and_from_then_on(outer, names):
    model = two()
    want = outputs(model)
    chosen = want[{(): "base", ("b",): "b"}.get(names, "both")]
    with BLOCKS[outer](model):
        lorica.activate(model, *names)
        assert near(model(X), chosen)
        with BLOCKS["rows"](model):
            assert near(model(X), want["rows"])
        assert near(model(X), chosen)
    assert torch.equal(model(X), chosen)
    trained = {n.split("adapters.")[1][0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(names)


def test_an_adapter_that_is_loaded_inside_a_block_acts(tmp_path):
    model = two()
    path = lorica.save(model, tmp_path / "a", "a")
    want = outputs(model)
    with lorica.use(model):
        lorica.load(model, path, name="c")
        assert near(model(X), want["a"])
        lorica.detach(model, "c")
        assert near(model(X), want["base"])
    with lorica.use(model, "b"):
        (path / "adapter_model.safetensors").write_bytes(b"")
        with pytest.raises(lorica.LoricaError):
            lorica.load(model, path, name="c")
        assert near(model(X), want["b"])


def paused(block: Callable, model: nn.Module) -> Generator[None]:
    with block(model):
        yield


class ByHand:
    """A block that is entered and left by hand, with the methods of a generator."""

    def __init__(self, block: Callable, model: nn.Module):
        self.block = block(model)

    def __next__(self) -> None:
        self.block.__enter__()

    def close(self) -> None:
        self.block.__exit__(None, None, None)


@pytest.mark.parametrize("kind", [paused, ByHand])
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("names", [("b", "base", "rows"), ("both", "b", "b")], ids="-".join)
def test_blocks_are_left_in_any_order(names, order, kind):
    model = two()
    want = outputs(model)
    opened = [kind(BLOCKS[name], model) for name in names]
    for block in opened:
        next(block)
    left = list(names)
    for place in order:
        assert near(model(X), want[[name for name in left if name][-1]])
        assert not torch.is_grad_enabled()
        opened[place].close()
        left[place] = ""
    assert torch.is_grad_enabled()
    assert torch.equal(model(X), want["a"])
    assert innermost(bank_of(model)) is None
    with BLOCKS["b"](model), torch.enable_grad():
        with BLOCKS["base"](model):
            assert near(model(X), want["base"])
        assert torch.is_grad_enabled()
        assert near(model(X), want["b"])


def test_a_block_that_is_left_acts_nowhere():
    model = two()
    want = outputs(model)
    stream = paused(BLOCKS["b"], model)
    next(stream)
    context = copy_context()
    assert near(context.run(model, X), want["b"])
    other = threading.Thread(target=stream.close)  # as where a garbage collector ends it
    other.start()
    other.join()
    assert near(model(X), want["a"])
    assert near(context.run(model, X), want["a"])
    torch.set_grad_enabled(True)  # a thread's own; another cannot turn it on


def test_no_row_is_refused():
    model = two()
    with pytest.raises(ConfigError, match="got no rows"), lorica.mixed(model, []):
        pass


def test_an_adapter_of_an_open_mixed_block_cannot_be_detached():
    model = two()
    with lorica.mixed(model, ROWS), pytest.raises(ConfigError, match="used by an open block"):
        lorica.detach(model, "b")


def test_a_block_is_over_one_model():
    first, second = two(), two()
    want = outputs(first)
    with lorica.use(first, "b"):
        assert torch.equal(second(X), want["a"])
        with lorica.use(second):
            assert near(first(X), want["b"]) and near(second(X), want["base"])


@pytest.mark.parametrize("first", [None, lorica.Full()], ids=["lora", "full"])
def test_threads_on_one_model_have_their_own_adapters(first):
    model = two(first)
    want = outputs(model)
    kinds = [k for k in BLOCKS if not (first and k == "rows")] + ["none"]
    want["none"] = want["a"]  # no block: what is active
    start = threading.Barrier(4)

    def work(number: int) -> list[str]:
        start.wait()
        wrong = []
        for i in range(60):
            kind = kinds[(number + i) % len(kinds)]
            if kind == "none":
                y = model(X)
            else:
                with BLOCKS[kind](model):
                    y = model(X)
            wrong += [] if near(y, want[kind]) else [kind]
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert [w for failures in pool.map(work, range(4)) for w in failures] == []


def test_one_seed_gives_one_start_in_every_thread():
    want = adapter_state(lorica.adapt(Stack(), lorica.Lora(r=8), seed=5))
    start = threading.Barrier(4)

    def work(_: int) -> list[dict[str, Tensor]]:
        start.wait()
        return [adapter_state(lorica.adapt(Stack(), lorica.Lora(r=8), seed=5)) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for state in (s for states in pool.map(work, range(4)) for s in states):
            assert all(torch.equal(state[key], want[key]) for key in want)


@pytest.mark.slow
def test_a_compiled_model_sees_the_blocks():
    model = two()
    want = outputs(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert near(compiled(X), want["a"])
    for kind in ("b", "base", "both"):
        with BLOCKS[kind](model):
            assert near(compiled(X), want[kind])
    assert near(compiled(X), want["a"])


def test_gradients_of_a_checkpointed_pass_are_those_of_the_active_adapter():
    model = Stack(checkpointed=True)
    moved(model, "a", 1, lorica.Lora(r=2))
    moved(model, "b", 2, lorica.Lora(r=2))
    lorica.activate(model, "a")
    x = X.clone().requires_grad_()
    loss = model(x).square().mean()
    with lorica.use(model, "b"):
        model(X)
    loss.backward()
    plain = Stack()
    moved(plain, "a", 1, lorica.Lora(r=2))
    y = X.clone().requires_grad_()
    plain(y).square().mean().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-6)


def test_a_model_can_be_copied_and_pickled_inside_a_block():
    model = two()
    want = outputs(model)
    with lorica.use(model, "b"):
        twin = copy.deepcopy(model)
        assert near(pickle.loads(pickle.dumps(model))(X), want["a"])
        assert near(twin(X), want["a"])
        assert near(model(X), want["b"])
