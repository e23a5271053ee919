"""LoRA-FA: a frozen A, and the optional factor on B's gradient."""

import copy

import pytest
import torch
from torch import nn

import lorica
from lorica import Lora
from lorica.core.bank import attached
from lorica.core.drive import Driver
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError, TargetError
from lorica.methods.lora_fa import LoraFa, LoraFaAdapter, preconditioner
from tests.laws.bases import IDS, Stack, X, move
from tests.methods.llama import llama


def adapters(model: nn.Module) -> list[LoraFaAdapter]:
    return list(attached(model, "default").adapters.values())  # type: ignore[arg-type]


def learn(
    model: nn.Module,
    steps: int,
    kind=torch.optim.SGD,
    lr: float = 0.1,
    begin: int = 0,
    optimizer=None,
    driver=None,
):
    """A loop as the trainer's. Returns what a checkpoint would keep beside the adapter."""
    optimizer = optimizer or kind((p for p in model.parameters() if p.requires_grad), lr=lr)
    driver = driver or Driver(model, total=100)
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(4, 12, generator=generator) for _ in range(begin + steps)]
    for x in data[begin:]:
        loss = (model(x) - x.roll(1, -1)).square().mean() + driver.penalty()
        loss.backward()
        driver.before_step()
        optimizer.step()
        driver.after_step()
        optimizer.zero_grad()
    return optimizer, driver


def test_a_is_frozen_and_in_the_file():
    model = lorica.adapt(Stack(), LoraFa(r=4))
    for adapter in adapters(model):
        assert [n for n, _ in adapter.named_parameters()] == ["b"]
        assert sorted(adapter.state_dict()) == ["a", "b"]
    lorica.activate(model, "default")
    assert not any(a.a.requires_grad for a in adapters(model))
    assert lorica.trainable_parameters(model).trainable == 2 * 4 * (20 + 12)


def test_it_begins_where_lora_does_and_its_first_step_is_loras():
    ours, theirs = (lorica.adapt(Stack(), kind(r=4), seed=3) for kind in (LoraFa, Lora))
    for model in (ours, theirs):
        learn(model, 1)
    pairs = list(zip(adapters(ours), attached(theirs, "default").adapters.values(), strict=True))
    assert len(pairs) == 4
    for one, other in pairs:
        assert torch.equal(one.a, other.a), "LoRA's A has no gradient at the first step"
        assert torch.equal(one.b, other.b)
        assert one.b.abs().max() > 0
    for model in (ours, theirs):
        learn(model, 1, begin=1)
    assert not any(torch.equal(one.a, other.a) for one, other in pairs)


@pytest.mark.parametrize("precondition", [False, True])
def test_a_keeps_every_bit_through_training(precondition):
    model = lorica.adapt(Stack(), LoraFa(r=4, precondition=precondition))
    start = [a.a.clone() for a in adapters(model)]
    optimizer, _ = learn(model, 20, torch.optim.AdamW, 1e-2)
    assert all(torch.equal(a.a, s) for a, s in zip(adapters(model), start, strict=True))
    assert all(a.b.abs().max() > 0 for a in adapters(model))
    assert len(optimizer.state) == 4


def test_the_backward_pass_keeps_no_input_for_a():
    """Of x (I numbers a token) LoRA keeps a copy for A's gradient; here only A x is kept."""

    def kept(kind: type[Lora]) -> set[int]:
        torch.manual_seed(0)
        model = lorica.adapt(nn.Sequential(nn.Linear(48, 24, bias=False)), kind(r=3))
        widths: set[int] = set()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim == 2 and 7 in tensor.shape:  # of the 7 tokens
                widths.add(tensor.numel() // 7)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.randn(7, 48))
        return widths

    assert kept(Lora) == {48, 3}
    assert kept(LoraFa) == {3}


def test_the_factor_by_hand():
    """A = diag(1, 2), s = 2: diag(0.25, 0.0625)."""
    got = preconditioner(torch.tensor([[1.0, 0], [0, 2]]), 2.0, 1e-8)
    torch.testing.assert_close(got, torch.diag(torch.tensor([0.25, 0.0625])))
    layer = nn.Linear(2, 3, bias=False)
    model = lorica.adapt(nn.Sequential(layer), LoraFa(r=2, alpha=4, precondition=True))
    (adapter,) = adapters(model)
    adapter.a.copy_(torch.tensor([[1.0, 0], [0, 2]]))
    driver = Driver(model, total=1)
    adapter.b.grad = torch.ones(3, 2)
    driver.before_step()
    torch.testing.assert_close(adapter.b.grad, torch.tensor([[0.25, 0.0625]] * 3))


@pytest.mark.parametrize("settings", [{}, {"alpha": 1}, {"use_rslora": True}], ids=str)
def test_the_step_is_the_gradient_of_the_weight_where_a_can_reach(settings):
    """s dB A = G P, with G the gradient of W and P the projection on the rows of A."""
    layer = nn.Linear(10, 6, bias=False)
    model = lorica.adapt(nn.Sequential(layer), LoraFa(r=3, precondition=True, **settings))
    (adapter,) = adapters(model)
    move(model)
    driver = Driver(model, total=1)
    x, g = torch.randn(20, 10), torch.randn(20, 6)
    (model(x) * g).sum().backward()
    driver.before_step()
    whole = g.T @ x
    basis = torch.linalg.qr(adapter.a.T).Q
    want = whole @ basis @ basis.T
    torch.testing.assert_close(
        adapter.scale * adapter.b.grad @ adapter.a, want, atol=1e-4, rtol=1e-4
    )


def test_more_rows_than_inputs_stay_finite():
    model = lorica.adapt(nn.Sequential(nn.Linear(2, 3)), LoraFa(r=4, precondition=True, delta=1e-3))
    (adapter,) = adapters(model)
    adapter.b.grad = torch.ones(3, 4)
    Driver(model, total=1).before_step()
    assert adapter.b.grad.isfinite().all()


def test_there_is_a_schedule_only_where_it_is_asked_for():
    plain, conditioned = (lorica.adapt(Stack(), LoraFa(r=4, precondition=p)) for p in (False, True))
    assert not Driver(plain, total=3).scheduled
    assert Driver(conditioned, total=3).scheduled
    learn(plain, 5)
    learn(conditioned, 5)
    assert all(
        not torch.allclose(p.b, c.b)
        for p, c in zip(adapters(plain), adapters(conditioned), strict=True)
    )


def test_a_resumed_run_is_the_same_bit_for_bit():
    def fresh(seed: int) -> nn.Module:
        return lorica.adapt(Stack(), LoraFa(r=4, precondition=True), seed=seed)

    whole = fresh(0)
    learn(whole, 12, torch.optim.AdamW, 1e-2)
    first = fresh(0)
    optimizer, driver = learn(first, 5, torch.optim.AdamW, 1e-2)
    second = fresh(9)  # another A, until the checkpoint is read
    again = torch.optim.AdamW((p for p in second.parameters() if p.requires_grad), lr=1e-2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    later = Driver(second, total=100)
    later.load_state(driver.state())
    load_adapter_state(second, {k: t.detach().clone() for k, t in adapter_state(first).items()})
    learn(second, 7, begin=5, optimizer=again, driver=later)
    for key, tensor in adapter_state(whole).items():
        assert torch.equal(adapter_state(second)[key], tensor), key


@pytest.mark.parametrize("init", ["gaussian", "pissa", "olora", "orthogonal"])
def test_other_starts(init):
    model = lorica.adapt(llama(), LoraFa(r=4, init=init))
    torch.testing.assert_close(model(IDS).logits, llama()(IDS).logits, atol=1e-4, rtol=1e-4)
    model(IDS).logits.square().mean().backward()
    assert all(a.b.grad is not None and a.b.grad.any() for a in adapters(model))


def test_the_file_is_a_lora(tmp_path):
    model = move(lorica.adapt(llama(), LoraFa(r=4)))
    lorica.export_lora(model, tmp_path / "plain")
    fresh = llama()
    lorica.load(fresh, tmp_path / "plain")
    torch.testing.assert_close(fresh(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


def test_dropout_and_bias_are_loras():
    model = move(lorica.adapt(Stack(), LoraFa(r=4, dropout=0.5, lora_bias=True))).train()
    assert not torch.equal(model(X), model(X))
    assert all(a.bias is not None and a.bias.requires_grad for a in adapters(model))


def test_an_embedding_would_never_learn_and_is_refused():
    with pytest.raises(TargetError):
        lorica.adapt(llama(), LoraFa(r=4), target_modules=["embed_tokens"])


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), float("inf")])
def test_settings_out_of_range(delta):
    with pytest.raises(ConfigError, match=r"lora_fa\.delta") as error:
        LoraFa(delta=delta)
    assert error.value.fix
    with pytest.raises(ConfigError, match=r"lora_fa\.r"):
        LoraFa(r=0)
