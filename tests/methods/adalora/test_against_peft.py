"""AdaLoRA: PEFT computes the same outputs, and scores and prunes alike."""

import pytest
import torch
from torch import nn

import lorica
from lorica.core.bank import attached
from lorica.methods.adalora import Adalora
from tests.methods.adalora.driving import PHASES
from tests.methods.driving import Run, zeros


def of_peft(run: Run) -> nn.Module:
    """The tensors of a run under the names by which PEFT's allocator finds them; copies."""
    root = nn.Module()
    for number, adapter in enumerate(run.adapters.values()):
        layer = nn.Module()
        for name, tensor in (("A", adapter.a), ("E", adapter.e.unsqueeze(1)), ("B", adapter.b)):
            values = nn.ParameterDict({"default": nn.Parameter(tensor.detach().clone())})
            setattr(layer, f"lora_{name}", values)
        root.add_module(f"site{number}", layer)
    return root


def test_peft_gives_the_same_output():
    pytest.importorskip("peft")
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import SVDLinear

    layer, x = nn.Linear(6, 5), torch.randn(3, 6)
    config = AdaLoraConfig(init_r=4, lora_alpha=7, total_step=10)
    theirs = SVDLinear(nn.Linear(6, 5), "default", config, r=4, lora_alpha=7)
    theirs.get_base_layer().load_state_dict(layer.state_dict())
    model = lorica.adapt(nn.Sequential(layer), Adalora(r=4, alpha=7))
    (ours,) = attached(model, "default").adapters.values()
    with torch.no_grad():
        for mine, other in (
            (ours.a, theirs.lora_A),
            (ours.e, theirs.lora_E),
            (ours.b, theirs.lora_B),
        ):
            nn.init.normal_(mine)
            other["default"].copy_(mine.view_as(other["default"]))
    torch.testing.assert_close(model(x), theirs(x))


def test_peft_scores_and_prunes_alike():
    pytest.importorskip("peft")
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import RankAllocator

    run = Run(Adalora(r=6, target_r=3, beta1=0.8, beta2=0.9, **PHASES), 40)
    theirs = of_peft(run)
    config = AdaLoraConfig(init_r=6, target_r=3, beta1=0.8, beta2=0.9, total_step=40, **PHASES)
    allocator, pattern = RankAllocator(theirs, config, "default"), None
    masked = 0
    for t in range(1, 41):
        grads = {}

        def keep(t, grads=grads):
            grads.update({k: p.grad.clone() for k, p in run.tensors.items()})

        before = run.vectors("e")
        real, schedule = run.schedule.after_step, run.schedule
        after: dict[str, torch.Tensor] = {}

        def watched(t, after=after, real=real):
            after.update({k: p.detach().clone() for k, p in run.tensors.items()})
            real(t)

        schedule.after_step = watched  # the optimizer's numbers, before ours are masked
        run.step(keep)
        del schedule.after_step
        for site, layer in zip(run.adapters, theirs.children(), strict=True):
            for name, key in (("A", "a"), ("E", "e"), ("B", "b")):
                tensor = getattr(layer, f"lora_{name}")["default"]
                tensor.data.copy_(after[f"{site}.{key}"].view_as(tensor))
                tensor.grad = grads[f"{site}.{key}"].view_as(tensor)
        if t <= 30:
            _, found = allocator.update_and_allocate(theirs, t, force_mask=t == 30)
            pattern = found or pattern
        else:
            allocator.mask_using_rank_pattern(theirs, pattern)
        for site, layer in zip(run.adapters, theirs.children(), strict=True):
            want = layer.lora_E["default"].detach().flatten()
            assert torch.equal(run.adapters[site].e.detach(), want), (t, site)
        masked += zeros(run.vectors("e").values()) > zeros(before.values())
    assert masked > 3
    assert sum(run.schedule.ranks().values()) == 12
