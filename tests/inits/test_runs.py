"""Starts and small methods in whole runs: a resumed one ends with the bits of the uninterrupted."""

import pytest
import torch

import lorica
from lorica.base.load import load
from lorica.core.bank import adapted_layers, spec_of
from tests.laws.bases import IDS
from tests.training.rows import adapter, interrupt, same, settings

CASES = {
    "pissa": {"method": {"name": "lora", "r": 4, "init": "pissa"}},
    "olora": {"method": {"name": "dora", "r": 4, "init": "olora"}},
    "eva": {"method": {"name": "lora", "r": 4, "init": "eva"}},
    "eva, frozen": {"method": {"name": "lora_fa", "r": 4, "init": "eva", "precondition": True}},
    "loftq": {"method": {"name": "lora", "r": 4, "init": "loftq"}, "quantisation": "nf4"},
    "lora_fa": {"method": {"name": "lora_fa", "r": 4, "precondition": True}},
    "vera": {"method": {"name": "vera", "r": 16}, "learning_rate": 0.05},
    "vera, small": {"method": {"name": "vera", "r": 16, "save_projection": False}},
    "ia3": {"method": "ia3", "target_modules": None},
    "norm": {"method": {"name": "dora", "r": 4, "detach_norm": False}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_resume_is_bit_identical(small_base, tmp_path, monkeypatch, case):
    changed = {"save_steps": 2, "max_steps": 5, **CASES[case]}
    whole = lorica.train(**settings(small_base, tmp_path / "a", **changed), show=False)
    parted = settings(small_base, tmp_path / "b", **changed)
    interrupt(monkeypatch, 3, **parted)
    resumed = lorica.train(resume=parted["output"], show=False)
    assert same(adapter(whole.folder), adapter(resumed.folder))
    assert resumed.figures["held_out_loss"] == whole.figures["held_out_loss"]


@pytest.mark.slow
def test_a_run_that_begins_from_data_finds_ranks_and_keeps_them(small_base, tmp_path):
    run = lorica.train(
        **settings(
            small_base, tmp_path, max_steps=3, method={"name": "lora", "r": 4, "init": "eva"}
        ),
        show=False,
    )
    model, plain = (load(str(small_base)).model for _ in range(2))
    lorica.load(model, run.folder / "adapter")
    ranks = {site: adapters["default"].r for site, _, adapters in adapted_layers(model)}
    assert sum(ranks.values()) == 4 * len(ranks)
    assert len(set(ranks.values())) > 1
    assert spec_of(model, "default").targets.rank_pattern
    for _, _, adapters in adapted_layers(model):
        assert adapters["default"].scale == pytest.approx(2)
        assert adapters["default"].b.any()
    assert not torch.equal(model(IDS).logits, plain(IDS).logits)
