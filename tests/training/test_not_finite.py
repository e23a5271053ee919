"""Weights with a NaN or an infinity are never saved, and what they compute is never passed on."""

import copy

import pytest
import torch

import lorica
from lorica.base.load import load
from lorica.core.state import adapter_state
from lorica.errors import MergeError, TrainingError
from lorica.formats import commit
from lorica.formats.export import export_lora
from lorica.generation.generate import generate
from tests.laws.bases import CASES, move, trained
from tests.training.rows import settings, tiny_base

STACK = CASES[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("validation", [0, 0.1])
@pytest.mark.parametrize(
    "changed, what",
    [
        ({"learning_rate": 1e38, "max_steps": 1}, "not finite after step 1"),
        (
            {"learning_rate": 1e38, "max_steps": 4, "save_steps": 2, "warmup_steps": 2},
            "the adapter was not updated",
        ),
        ({"learning_rate": 1e30, "max_steps": 1}, "loss of"),  # finite weights whose product is not
        (
            {"learning_rate": 1e38, "max_steps": 1, "optimizer": "sgd"},
            "is not finite|are not finite",
        ),
        (
            {"learning_rate": 1e30, "max_steps": 1, "method": "full", "target_modules": None},
            "loss of",
        ),
    ],
)
def test_no_update_that_went_wrong_is_saved(tiny, tmp_path, changed, what, validation):
    config = settings(tiny, tmp_path, **{"max_grad_norm": 1e9, **changed})
    config["data"] |= {"validation": validation}
    with pytest.raises(TrainingError, match=what):
        lorica.train(**config, show=False)
    assert not (tmp_path / "run" / "adapter").exists()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_the_error_names_tensors_step_rate_and_fix(tiny, tmp_path):
    with pytest.raises(TrainingError) as caught:
        lorica.train(**settings(tiny, tmp_path, learning_rate=1e38, max_steps=1), show=False)
    text = str(caught.value)
    for word in ("model.layers.0", "step 1", "1e+38", "lower learning_rate"):
        assert word in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", ["lora", "dora", "vera", "full", "adalora", "bottleneck"])
def test_save_refuses_each_tensor_and_leaves_the_folder(method, value, tmp_path):
    model = trained(method, STACK)
    path = tmp_path / "adapter"
    lorica.save(model, path)
    before = {file.name: commit.digest(file) for file in path.iterdir()}
    for name in adapter_state(model):
        broken = copy.deepcopy(model)
        with torch.no_grad():
            adapter_state(broken)[name].view(-1)[-1] = value
        with pytest.raises(TrainingError, match=r"not saved.*stays as it was") as caught:
            lorica.save(broken, path)
        assert name in str(caught.value)
    assert before == {file.name: commit.digest(file) for file in path.iterdir()}


def broken_adapter(tiny):
    base = load(str(tiny))
    move(lorica.adapt(base.model, lorica.Lora(r=2)))
    with torch.no_grad():
        adapter_state(base.model)["model.layers.1.mlp.down_proj.b"][0, 0] = float("nan")
    return base


def test_merge_and_export_refuse_it(tiny, tmp_path):
    base = broken_adapter(tiny)
    weights = {k: t.clone() for k, t in base.model.state_dict().items()}
    with pytest.raises(MergeError, match="not merged"):
        lorica.merge(base.model)
    assert all(
        torch.equal(weights[k], t) or t.isnan().any() for k, t in base.model.state_dict().items()
    )
    with pytest.raises((TrainingError, MergeError), match=r"finite|not saved"):
        export_lora(base.model, tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sampled", [0.0, 0.7])
def test_nothing_is_written_from_logits_that_are_no_numbers(tiny, sampled):
    with pytest.raises(TrainingError, match="logits are not finite"):
        generate(broken_adapter(tiny), ["a red house"], max_new_tokens=3, temperature=sampled)


def test_a_vocabulary_that_is_masked_in_part_can_write(tiny):
    base = load(str(tiny))
    mask = torch.zeros(base.model.lm_head.out_features)
    mask[100:] = float("-inf")
    base.model.lm_head.register_forward_hook(lambda module, args, y: y + mask)
    (tokens,) = generate(base, ["a red house"], max_new_tokens=3).tokens
    assert max(tokens) < 100
