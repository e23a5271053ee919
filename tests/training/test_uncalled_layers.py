"""Layers that does not call them on text are left out of a run, and it says so."""

import json
from pathlib import Path

import pytest
import torch

import lorica
from lorica.base.training_probe import is_random_in_training, layers_not_called
from lorica.core.site import sites_of
from lorica.core.targets import also_excluded
from lorica.errors import TrainingError
from tests.base.architectures import tiny, write

IDLE = {"mamba": "dt_proj", "jamba": "dt_proj", "gemma3n": "altup.correction_coefs"}


def train(tmp_path: Path, name: str, **settings: object):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"the cat {i}", "completion": " sat"}) + "\n" for i in range(4)
        )
    )
    base = write(tmp_path / "base", name)
    data = {"path": str(rows), "validation": 0}
    return lorica.train(
        base=str(base), data=data, max_steps=1, output=str(tmp_path / "run"), show=False, **settings
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("name", IDLE)
def test_a_layer_whose_weight_is_taken_without_a_call_is_left_out(name, tmp_path):
    done = train(tmp_path, name)
    assert any("does not call them on text" in line and IDLE[name] in line for line in done.notices)
    manifest = json.loads((done.folder / "adapter/manifest.json").read_text())
    assert manifest["targets"]["exclude_modules"]


def test_a_layer_that_was_named_is_named_when_it_learns_nothing(tmp_path):
    with pytest.raises(TrainingError, match="got no gradient"):
        train(tmp_path, "mamba", target_modules=["dt_proj", "x_proj"])


def test_experts_that_no_token_chose_are_not_idle():
    model = tiny("llama")
    experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))
    model.model.layers[0].mlp.experts = experts
    model.model.layers[0].mlp.register_forward_hook(lambda mlp, x, y: y + mlp.experts[0](x[0]))
    model.model.vision_tower = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4)})
    names = [site.name for site in sites_of(model)]
    assert layers_not_called(model, names) == ["model.vision_tower.proj"]


def test_exclusions_are_added_to_those_of_the_user():
    assert also_excluded(None, ["a.b"]) == ["a.b"]
    assert also_excluded("v_proj", ["a.b"]) == ["v_proj", "a.b"]
    assert also_excluded(["v_proj"], ["a.b"]) == ["v_proj", "a.b"]
    assert also_excluded(r".*\.v_proj", ["a.b"]) == r"(?:.*\.v_proj)|a\.b"


@pytest.mark.parametrize(("chance", "changes"), [(0.3, True), (0.0, False)])
def test_draws_that_seldom_change_anything_are_found(chance, changes):
    """As at a router that samples its second expert; layerdrop of 0 draws, and changes nothing."""
    model = tiny("llama")

    def noise(layer, x, y):
        return y + 1 if layer.training and torch.rand(()) < chance else y

    model.model.norm.register_forward_hook(noise)
    assert is_random_in_training(model) is changes


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_base_that_draws_at_random_in_training_is_a_notice(dropout, tmp_path):
    model = tiny("llama", attention_dropout=dropout)
    before = torch.random.get_rng_state()
    assert is_random_in_training(model) is (dropout > 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    if dropout:
        write(tmp_path / "base", "llama", attention_dropout=dropout)
        (tmp_path / "rows.jsonl").write_text('{"prompt": "the cat", "completion": " sat"}\n' * 2)
        data = {"path": str(tmp_path / "rows.jsonl"), "validation": 0}
        done = lorica.train(
            base=str(tmp_path / "base"),
            data=data,
            max_steps=1,
            show=False,
            output=str(tmp_path / "run"),
        )
        assert any("draws at random in training" in line for line in done.notices)
