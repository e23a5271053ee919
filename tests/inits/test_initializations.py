"""Every initialization: initial A and B, what is subtracted, and that the base is unchanged."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import lorica
from lorica import Dora, Lora
from lorica.core.bank import adapted_layers
from lorica.core.initialization import Initialization, parse_initialization, skip_initialization
from lorica.core.site import Site, sites_of
from lorica.core.state import adapter_state
from lorica.errors import ConfigError, TargetError
from lorica.methods.lora import LoraAdapter
from tests.laws.bases import CASES, Case, Stack, bits, move, same_bits
from tests.marks import slow_but

TAKEN_OUT = ["pissa", "pissa_niter_4", "olora"]
EXACT = ["kaiming", "gaussian", "orthogonal", *TAKEN_OUT]
ON = [c for c in CASES if c.name in ("stack", "bf16", "packed", "gpt2", "llama", "nf4")]
QUICK = [c for c in ON if c.name in ("stack", "gpt2", "nf4")]
everywhere = pytest.mark.parametrize("case", ON, ids=str)
exact = pytest.mark.parametrize("init", EXACT)
taken_out = pytest.mark.parametrize("init", TAKEN_OUT)


def one(weight: list[list[float]], **settings) -> tuple[nn.Sequential, LoraAdapter]:
    """A model of one linear layer, and its adapter."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    model = lorica.adapt(nn.Sequential(layer), Lora(**settings))
    return model, adapters(model)[0]


def adapters(model: nn.Module) -> list[LoraAdapter]:
    return [adapters["default"] for _, _, adapters in adapted_layers(model)]


def adapted(case: Case, init: str, kind: type[Lora] = Lora, **settings) -> nn.Module:
    return lorica.adapt(case.make(), kind(r=4, init=init, **settings))


# -- what holds for all -----


def test_every_file_is_a_start_and_its_name_has_no_separator():
    names = [n for n in Initialization.names() if "_" not in n]
    assert names == Initialization.names()
    assert {"kaiming", "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva"} <= set(names)
    assert all(parse_initialization(name).name == name for name in names)


@everywhere
@exact
def test_begins_as_the_base_which_is_not_written_to(init, case):
    base, model = case.make(), adapted(case, init)
    before = bits(base)
    want = case.run(base)
    if init in TAKEN_OUT:
        assert torch.equal(case.run(model), want), "nothing is left of what is taken out"
    else:
        torch.testing.assert_close(case.run(model), want, atol=case.exact, rtol=1e-4)
    case.run(model.train()).square().mean().backward()
    assert same_bits(bits(model), before)


@pytest.mark.parametrize("case", slow_but(QUICK, ON), ids=str)
@pytest.mark.parametrize("kind", [Lora, Dora])
@pytest.mark.parametrize("init", [*TAKEN_OUT, "orthogonal"])
def test_merging_and_saving_a_moved_start(init, kind, case, tmp_path):
    model = move(adapted(case, init, kind))
    want = case.run(model)
    assert not torch.allclose(want, case.run(case.make()), atol=1e-4)
    assert torch.equal(case.run(copy.deepcopy(model)), want)
    fresh = case.make()
    assert lorica.load(fresh, lorica.save(model, tmp_path / "adapter")) == []
    assert torch.equal(case.run(fresh), want)
    lorica.merge(model)
    torch.testing.assert_close(case.run(model), want, atol=case.exact, rtol=1e-4)


@taken_out
def test_the_update_is_a_lora_of_twice_the_rank(init):
    model = move(adapted(ON[0], init))
    for _, module, adapters in adapted_layers(model):
        adapter = adapters["default"]
        weight, _ = adapters.as_site(module).dense()
        a, b = adapter.factors()
        assert a.shape == (8, weight.shape[1])
        merged, _ = adapter.merged(weight, None)
        torch.testing.assert_close(weight + b @ a, merged)
        naive = adapter.scale * (adapter.b @ adapter.a - adapter.b0 @ adapter.a0)
        torch.testing.assert_close(b @ a, naive, atol=1e-5, rtol=1e-4)
        assert torch.linalg.matrix_rank(b @ a, rtol=1e-4) <= 8


@taken_out
def test_a_small_change_survives_bfloat16(init):
    """B A x - B0 A0 x, each rounded to bf16, would lose what training has changed."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    model = lorica.adapt(nn.Sequential(layer), Lora(r=8, alpha=8, init=init))
    move(model, size=1e-4)
    (adapter,), x = adapters(model), torch.randn(50, 64)
    a, b = (t.double() for t in (adapter.a, adapter.b))
    a0, b0 = adapter.a0.double(), adapter.b0.double()
    want = x.double() @ (b @ a - b0 @ a0).T
    nothing = torch.zeros(50, 64, dtype=torch.bfloat16)
    got = adapter.after(x.bfloat16(), nothing, layer).double()  # the scale is 1
    half = [t.bfloat16() for t in (adapter.a, adapter.b, adapter.a0, adapter.b0)]
    lossy = (x.bfloat16() @ half[0].T @ half[1].T - x.bfloat16() @ half[2].T @ half[3].T).double()
    error, naive = ((v - want).norm() / want.norm() for v in (got, lossy))
    assert error < 0.01
    assert naive > 0.2


@pytest.mark.parametrize(
    "kind, init",
    [
        (Dora, "pissa"),
        *(
            pytest.param(k, i, marks=pytest.mark.slow)
            for k in (Lora, Dora)
            for i in TAKEN_OUT
            if (k, i) != (Dora, "pissa")
        ),
    ],
)
def test_compiles_whole_and_keeps_gradients_under_checkpointing(kind, init):
    torch._dynamo.reset()
    case, grads = ON[0], []
    for checkpointed in (False, True):
        model = move(lorica.adapt(Stack(checkpointed=checkpointed), kind(r=4, init=init)))
        case.run(model).square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) == 4 * (3 if kind is Dora else 2)
    for one_, other in zip(*grads, strict=True):
        torch.testing.assert_close(one_, other)
    model = move(adapted(case, init, kind))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(case.run(compiled), case.run(model), atol=1e-5, rtol=1e-5)


def test_starts_follow_from_the_seed():
    for init in ("kaiming", "gaussian", "orthogonal", "pissa_niter_2"):
        same, again, other = (
            adapters(lorica.adapt(Stack(), Lora(r=4, init=init), seed=seed))[0].a.detach()
            for seed in (1, 1, 2)
        )
        assert torch.equal(same, again)
        assert not torch.equal(same, other)


def test_factors_stand_in_memory_of_their_own():
    for adapter in adapters(adapted(ON[0], "olora")):
        for tensor in (adapter.a, adapter.b, adapter.a0, adapter.b0):
            assert tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.numel() * 4
        assert adapter.a.data_ptr() != adapter.a0.data_ptr()


def test_a_start_is_skipped_where_a_file_fills_the_adapter(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a start was computed")

    monkeypatch.setattr(torch.linalg, "svd", never)
    with pytest.raises(AssertionError, match="was computed"):
        adapted(ON[0], "pissa")
    with skip_initialization():
        for adapter in adapters(adapted(ON[0], "pissa")):
            assert not any(t.any() for t in adapter.state_dict().values())
            assert adapter.a0.shape == adapter.a.shape
            assert adapter.b0.shape == adapter.b.shape
        assert not any(adapter.waits for adapter in adapters(adapted(ON[0], "eva")))
    with pytest.raises(AssertionError, match="was computed"):
        adapted(ON[0], "pissa")


# -- each -----


def test_pissa_by_hand():
    """W = diag(3, 1), r = 1, s = 1: B0 = A0 = (sqrt 3, 0) up to a sign, W - B0 A0 = diag(0, 1)."""
    model, adapter = one([[3, 0], [0, 1]], r=1, alpha=1, init="pissa")
    root = torch.tensor([math.sqrt(3), 0])
    torch.testing.assert_close(adapter.a0.abs().flatten(), root)
    torch.testing.assert_close(adapter.b0.abs().flatten(), root)
    torch.testing.assert_close(
        torch.eye(2) * torch.tensor([3.0, 1]) - adapter.b0 @ adapter.a0,
        torch.diag(torch.tensor([0.0, 1])),
    )
    with torch.no_grad():
        adapter.a.zero_()
    torch.testing.assert_close(model(torch.eye(2)), torch.diag(torch.tensor([0.0, 1])))


@everywhere
def test_pissa_takes_the_largest_singular_directions(case):
    model = adapted(case, "pissa", alpha=3)
    for _, module, adapters in adapted_layers(model):
        weight, _ = adapters.as_site(module).dense()
        adapter = adapters["default"]
        whole = torch.linalg.svdvals(weight)
        left = torch.linalg.svdvals(weight - adapter.scale * adapter.b0 @ adapter.a0)
        torch.testing.assert_close(left[: len(whole) - 4], whole[4:], atol=1e-5, rtol=1e-4)
        assert (left[len(whole) - 4 :] < 1e-5 * whole[0]).all()
        torch.testing.assert_close(adapter.a0.norm(dim=1), adapter.b0.norm(dim=0))


def test_the_randomised_pissa_is_near_the_exact_one():
    torch.manual_seed(3)
    decaying = torch.linalg.qr(torch.randn(60, 60)).Q * 0.8 ** torch.arange(60)
    decaying = decaying @ torch.linalg.qr(torch.randn(60, 60)).Q
    products = []
    for init in ("pissa", "pissa_niter_1", "pissa_niter_4"):
        _, adapter = one(decaying.tolist(), r=6, init=init)
        products.append(adapter.scale * adapter.b0 @ adapter.a0)
    errors = [(p - products[0]).norm() / products[0].norm() for p in products]
    assert 0 < errors[2] < errors[1] < 0.02
    assert errors[2] < 1e-4


def test_pissa_learns_in_both_factors_from_the_first_step():
    model, adapter = one([[3, 0], [0, 1]], r=1, alpha=2, init="pissa")
    x, g = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]])
    (model(x) * g).sum().backward()
    s = adapter.scale
    torch.testing.assert_close(adapter.a.grad, s * (adapter.b0.T @ g.T) @ x)
    torch.testing.assert_close(adapter.b.grad, s * g.T @ (x @ adapter.a0.T))
    assert adapter.a.grad.abs().max() > 0 and adapter.b.grad.abs().max() > 0


def test_dropout_is_nothing_at_the_start_of_pissa():
    case = ON[0]
    model = adapted(case, "pissa", dropout=0.5).train()
    assert torch.equal(case.run(model), case.run(case.make()))
    move(model)
    assert not torch.equal(case.run(model), case.run(model))


@everywhere
def test_olora_begins_in_an_orthonormal_basis(case):
    for _, module, adapters in adapted_layers(adapted(case, "olora")):
        weight, _ = adapters.as_site(module).dense()
        adapter = adapters["default"]
        torch.testing.assert_close(adapter.b.T @ adapter.b, torch.eye(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(adapter.a, adapter.b.T @ weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            (adapter.b @ adapter.a)[:, :4], weight[:, :4], atol=1e-5, rtol=1e-4
        )


def test_orthogonal_begins_at_nothing_with_two_live_factors():
    for adapter in adapters(adapted(ON[0], "orthogonal")):
        assert adapter.a.norm() > 0.1 and adapter.b.norm() > 0.1
        assert (adapter.b @ adapter.a).abs().max() < 1e-7
        assert adapter.a0 is None
    with pytest.raises(ConfigError, match="even r") as error:
        lorica.adapt(Stack(), Lora(r=3, init="orthogonal"))
    assert "4" in error.value.fix


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_dora_on_a_start_that_is_taken_out(init):
    case = ON[4]
    model = adapted(case, init, Dora)
    for adapter in adapters(model):
        torch.testing.assert_close(adapter.m, adapter.square.sqrt())
    move(model)
    for _, module, own in adapted_layers(model):
        adapter, (weight, _) = own["default"], own.as_site(module).dense()
        change = adapter.b @ adapter.a - adapter.b0 @ adapter.a0
        want = (weight + adapter.scale * change).norm(dim=1)
        torch.testing.assert_close(
            adapter.norm(torch.float32, module.forward), want, rtol=1e-4, atol=1e-4
        )


# -- what is refused -----


@pytest.mark.parametrize(
    "init, words",
    [
        ("pisa", "'pissa'"),
        ("kaimin", "'kaiming'"),
        ("", "no initialization ''"),
        ("pissa_rounds_4", "no setting 'rounds'"),
        ("kaiming_niter_4", "no setting 'niter'"),
        ("pissa_niter", "not a number"),
        ("pissa_niter_x", "not a number"),
        ("pissa_niter_0", "niter"),
        ("pissa_niter_1.5", "niter"),
        ("eva_rho_0.5", "rho"),
        ("eva_tau_0", "tau"),
        ("eva_tau_1.5", "tau"),
        ("eva_rho_nan", "rho"),
    ],
    ids=str,
)
def test_an_unknown_start_is_refused_with_what_there_is(init, words):
    with pytest.raises(ConfigError, match=r"lora\.init") as error:
        Lora(init=init)
    assert words.replace("'pissa'", "pissa").replace("'kaiming'", "kaiming") in str(error.value)
    assert error.value.fix
    with pytest.raises(ConfigError, match=r"dora\.init"):
        Dora(init=init)


def test_settings_of_a_start_are_read():
    assert parse_initialization("pissa_niter_16").niter == 16
    eva = parse_initialization("eva_tau_0.999_rho_1.5")
    assert (eva.rho, eva.tau) == (1.5, 0.999)
    assert Lora(init="eva").needs_data
    assert not Lora(init="pissa").needs_data


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_a_rank_that_the_weight_does_not_have(init):
    with pytest.raises(ConfigError, match="weight has rank 12") as error:
        lorica.adapt(Stack(), Lora(r=13, init=init))
    assert "r=12" in error.value.fix
    assert len(adapters(lorica.adapt(Stack(), Lora(r=12, init=init)))) == 4


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal", "eva"])
def test_starts_for_linear_layers_refuse_embeddings(init):
    model = nn.Sequential(nn.Embedding(30, 8))
    with pytest.raises(TargetError, match="kind: embedding") as error:
        lorica.adapt(model, Lora(r=4, init=init), target_modules="all")
    assert "kaiming" in error.value.fix
    assert not list(adapted_layers(model))


def test_a_weight_that_is_not_finite_is_named():
    model = Stack()
    with torch.no_grad():
        model.layers[1]["up"].weight[0, 0] = math.nan
    with pytest.raises(TargetError, match=r"layers\.1\.up"):
        lorica.adapt(model, Lora(r=4, init="pissa"))


def test_a_start_reads_the_weight_of_a_transposed_layer():
    case = next(c for c in ON if c.name == "gpt2")
    site: Site = next(s for s in sites_of(case.make()) if s.transposed)
    a, b = parse_initialization("pissa").initial_factors(site, 4, 1.0)
    assert (a.shape, b.shape) == ((4, site.in_features), (site.out_features, 4))


def test_tensors_on_disk_are_those_of_a_plain_lora(tmp_path: Path):
    """Whoever reads the folder needs not know the start: rank 2 r on the untouched base."""
    case = next(c for c in ON if c.name == "llama")
    model = move(adapted(case, "pissa"))
    assert {k.rpartition(".")[2] for k in adapter_state(model)} == {"a", "b", "a0", "b0"}
    lorica.export_lora(model, tmp_path / "plain")
    lorica.load(fresh := case.make(), tmp_path / "plain")
    torch.testing.assert_close(case.run(fresh), case.run(model), atol=1e-5, rtol=1e-5)
    assert all(a.r == 8 and a.a0 is None for a in adapters(fresh))
