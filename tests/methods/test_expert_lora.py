"""LoRA and DoRA on fused experts: gradients as PEFT's target_parameters, and what is refused."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica.core.adapter import Adapter, Method
from lorica.core.bank import adapted_layers, attached
from lorica.core.site import expert_sites, sites_of
from lorica.core.state import adapter_state
from lorica.errors import ConfigError, TargetError
from lorica.methods.lora.experts import ExpertLora
from tests.base.architectures import tiny
from tests.laws.bases import bits, move, same_bits

MODELS = ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss")
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
IDS = torch.tensor([[5, 9, 33, 70, 12, 8, 99, 40, 7, 61], [4, 90, 3, 17, 55, 200, 31, 6, 1, 2]])


def adapted(name: str, method: Method | None = None, **settings: Any) -> nn.Module:
    method = method or lorica.Lora(r=3, alpha=5)
    targets: dict[str, Any] = {"target_modules": [], "target_parameters": "experts", **settings}
    return lorica.adapt(tiny(name), method, **targets)


def loss(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


def peft_model(name: str, ours: nn.Module) -> Any:
    """The same adapter in PEFT, with the numbers of ours."""
    peft = pytest.importorskip("peft")
    stacks = sorted({site.rpartition(".")[2] for site, _, _ in adapted_layers(ours)})
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=[], target_parameters=stacks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(tiny(name), config).eval()


def theirs_by_site(model: Any) -> dict[str, tuple[nn.Parameter, nn.Parameter, int]]:
    """Site -> PEFT's lora_A (E r, I), lora_B (O, r E) and E."""
    by_site = {}
    module: Any
    for name, module in model.named_modules():
        if type(module).__name__ == "ParamWrapper":
            layer = name.removeprefix("base_model.model.").replace(".base_layer", "")
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            by_site[f"{layer}.{module.parameter_name}"] = (a, b, module.num_experts)
    return by_site


def stacked(a: Tensor, b: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """PEFT's pair as (E, R, I) and (E, O, R)."""
    return a.view(experts, -1, a.shape[1]), b.view(len(b), -1, experts).permute(2, 0, 1)


@pytest.mark.parametrize("name", MODELS)
def test_one_step_is_that_of_target_parameters(name):
    ours = move(adapted(name), size=0.2)
    model = peft_model(name, ours)
    theirs, state = theirs_by_site(model), adapter_state(ours)
    assert theirs.keys() == set(attached(ours).sites)
    with torch.no_grad():
        for site, (a, b, experts) in theirs.items():
            for own, copy in zip(stacked(a, b, experts), "ab", strict=True):
                own.copy_(state[f"{site}.{copy}"])
    want, got = loss(model), loss(ours)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    want.backward()
    got.backward()
    for site, (a, b, experts) in theirs.items():
        assert a.grad is not None and b.grad is not None
        for grad, key in zip(stacked(a.grad, b.grad, experts), "ab", strict=True):
            own = state[f"{site}.{key}"].grad
            assert own is not None and grad.abs().max() > 1e-4
            torch.testing.assert_close(own, grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_factored_pass_is_that_of_adapted_stacks_and_of_the_merged_model(
    name, method, monkeypatch
):
    """And of every implementation of transformers on adapted stacks."""
    model = move(adapted(name, lorica.method(method, r=2)), size=0.2)
    base = bits(model)
    want = loss(model)
    want.backward()
    grads = {key: t.grad for key, t in adapter_state(model).items()}
    with torch.no_grad():
        factored = model(IDS).logits
        assert (factored - tiny(name)(IDS).logits).abs().max() > 0.01
    monkeypatch.setattr(ExpertLora, "run_experts", Adapter.run_experts)
    for implementation in IMPLEMENTATIONS:
        model.set_experts_implementation(implementation)  # type: ignore
        model.zero_grad()
        loss(model).backward()
        for key, tensor in adapter_state(model).items():
            torch.testing.assert_close(tensor.grad, grads[key], atol=1e-6, rtol=1e-4)
        assert same_bits(bits(model), base)
    lorica.merge(model)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, factored, atol=1e-5, rtol=1e-5)


def test_two_adapters_act_together_as_merged():
    model = move(adapted("gpt_oss"), size=0.2)
    lorica.adapt(model, lorica.Dora(r=2), name="second", target_parameters=["down_proj"])
    move(model, seed=2, size=0.2)
    lorica.activate(model, "default", "second")
    with torch.no_grad():
        both = model(IDS).logits
        with lorica.use(model, "default"):
            assert not torch.allclose(model(IDS).logits, both, atol=0.01)
        lorica.merge(model)
        torch.testing.assert_close(model(IDS).logits, both, atol=1e-5, rtol=1e-5)
    experts = model.model.layers[0].mlp.experts  # type: ignore[union-attr]
    assert "forward" not in vars(experts) and "adapters" not in dict(experts.named_children())


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_checkpointing_gives_the_same_gradients(method):
    model = move(adapted("qwen3_moe", lorica.method(method, r=2)), size=0.2).train()
    loss(model).backward()
    want = {key: tensor.grad.clone() for key, tensor in adapter_state(model).items()}  # type: ignore[union-attr]
    model.zero_grad()
    model.activation_checkpointing_enable()  # type: ignore[operator]
    loss(model).backward()
    for key, tensor in adapter_state(model).items():
        torch.testing.assert_close(tensor.grad, want[key])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_block_of_experts_compiles_whole(name, method):
    """With adapted stacks in float32, whose grouped products the compiler does not know."""
    block: Any = move(adapted(name, lorica.method(method, r=2)), size=0.2).model.layers[0].mlp  # type: ignore[union-attr]
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(3))
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), atol=1e-5, rtol=1e-5)


def test_dora_keeps_the_trained_norm_of_every_row_of_every_expert():
    for name in ("mixtral", "gpt_oss"):
        model = move(adapted(name, lorica.Dora(r=2)), size=0.2)
        state = adapter_state(model)
        norms = {site: state[f"{site}.m"].detach().abs() for site in attached(model).sites}
        lorica.merge(model)
        for site in sites_of(model, ("expert",)):
            rows = site.dense()[0].norm(dim=-1)
            torch.testing.assert_close(rows, norms[site.name].view_as(rows))


def test_the_axes_follow_the_declaration_of_the_module():
    straight, turned = (sites_of(tiny(name), ("expert",))[0] for name in ("mixtral", "gpt_oss"))
    assert (straight.in_features, straight.out_features, straight.transposed) == (32, 128, False)
    assert (turned.in_features, turned.out_features, turned.transposed) == (32, 32, True)
    model = tiny("llama4_chunks")  # declares no axes
    assert not sites_of(model, ("expert",))
    assert not any(expert_sites(name, m) for name, m in tiny("llama").named_modules())


def test_experts_are_adapted_only_where_target_parameters_names_them():
    def sites(**targets: Any) -> list[str]:
        model = lorica.adapt(tiny("qwen3_moe"), lorica.Lora(r=2), **targets)
        return [name for name, _, _ in adapted_layers(model)]

    attention = sites()
    assert attention == sites(target_modules="all-linear")
    assert not any("expert" in name for name in attention)
    both = sites(target_parameters="experts")
    assert [name for name in both if "expert" not in name] == attention
    assert len(both) == len(attention) + 4
    for entries in (["mlp.experts.down_proj"], "down_proj"):
        (first, _) = sites(target_modules=[], target_parameters=entries)
        assert first == "model.layers.0.mlp.experts.down_proj"
    assert sites(target_modules=[], target_parameters="experts", layers_to_transform=1) == both[-2:]
    assert sites(
        target_modules=["q_proj"], target_parameters="experts", exclude_modules=["gate_up_proj"]
    )[:2] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.experts.down_proj",
    ]  # in model order


def test_entries_that_select_nothing_are_refused():
    with pytest.raises(TargetError, match="'up' selects no fused weight") as error:
        adapted("mixtral", target_parameters=["up"])
    assert "known    down_proj, gate_up_proj" in str(error.value)
    for name in ("llama", "llama4_chunks"):
        with pytest.raises(TargetError, match="'experts' selects no fused weight"):
            adapted(name)


@pytest.mark.parametrize(
    "name", sorted(n for n in Method.names() if "expert" not in Method.named(n).kinds)
)
def test_methods_that_are_not_defined_on_experts_refuse_them(name):
    with pytest.raises(TargetError, match=f"weights of experts, on which {name} is not"):
        adapted("mixtral", lorica.method(name))


@pytest.mark.parametrize(
    "method",
    [
        lorica.Lora(dropout=0.1),
        lorica.Lora(lora_bias=True),
        lorica.Lora(init="pissa"),
        lorica.Lora(init="eva"),
    ],
    ids=["dropout", "lora_bias", "pissa", "eva"],
)
def test_settings_that_are_not_defined_on_experts_are_refused(method):
    with pytest.raises(TargetError, match=r"layers\.0\.mlp\.experts\.gate_up_proj"):
        adapted("mixtral", method)


def test_rows_cannot_have_adapters_of_their_own():
    model = adapted("mixtral")
    with (
        pytest.raises(ConfigError, match="acts on all rows"),
        lorica.mixed(model, ["default", None]),
    ):
        model(IDS)
    assert isinstance(model.model.layers[0].mlp.experts.gate_up_proj, nn.Parameter)  # type: ignore[union-attr]


def test_a_forward_pass_that_others_wrapped_is_theirs_again():
    """As accelerate wraps modules, before and after an adapter is attached."""
    model = tiny("mixtral")
    with torch.no_grad():
        want = model(IDS).logits
    experts, calls = model.model.layers[0].mlp.experts, []  # type: ignore[union-attr]

    def wrap(module: nn.Module, name: str) -> None:
        inner = module.forward

        def wrapped(*inputs: Any) -> Any:
            calls.append(name)
            return inner(*inputs)

        module.forward = wrapped

    wrap(experts, "before")
    lorica.adapt(model, lorica.Lora(r=2), target_parameters="experts")
    lorica.detach(model)
    model(IDS)
    assert calls == ["before"]
    lorica.adapt(model, lorica.Lora(r=2), target_parameters="experts")
    wrap(experts, "after")
    move(model, size=0.2)
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, want, atol=1e-3)
        lorica.detach(model)
        assert torch.equal(model(IDS).logits, want)
    assert calls[1:] == ["after", "before"] * 2


def test_an_error_inside_the_experts_leaves_the_base_as_it_was():
    model = move(adapted("mixtral"))
    experts = model.model.layers[0].mlp.experts  # type: ignore[union-attr]
    own = experts.down_proj
    with pytest.raises(Exception):  # noqa: B017  of whatever the model raises
        experts(torch.zeros(2, 5), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2))
    assert experts.down_proj is own
