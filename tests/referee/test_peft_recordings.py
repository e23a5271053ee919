"""Adapters that PEFT wrote, and the logits it recorded for them (../shared/referee)."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lorica
from lorica.errors import MergeError
from tests.laws.bases import SHARED, stories
from tests.referee.models import near

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, which are not ours to fix
REFERENCE = SHARED / "referee/peft-reference"
IN_FRONT = {"p-tuning", "prefix-tuning", "prompt-tuning"}  # no weight, so nothing to merge
RECORDED = sorted(p.name for p in REFERENCE.iterdir()) if REFERENCE.is_dir() else []


@pytest.mark.parametrize("case", RECORDED)
def test_logits_that_peft_recorded(case, tmp_path):
    expected = load_file(REFERENCE / case / "expected.safetensors")
    model, fresh = stories(), stories()
    (line,) = lorica.load(model, REFERENCE / case)
    assert "cannot be verified" in line
    if case != "p-tuning":  # its network is gone, and its table is in its place
        assert lorica.trainable_parameters(model).trainable == meta(case)["trainable"]
    with torch.no_grad():
        ids = expected["input_ids"]
        want = expected["logits_adapter"][:, -ids.shape[1] :]  # PEFT gives virtual tokens as well
        near(model(ids).logits, want, 1e-4)
        with lorica.use(model):
            near(model(ids).logits, expected["logits_base"], 1e-4)
        assert lorica.load(fresh, lorica.save(model, tmp_path / "ours")) == []
        near(fresh(ids).logits, want, 1e-4)
        if case in IN_FRONT:
            with pytest.raises(MergeError):
                lorica.merge(model)
        else:
            lorica.merge(model)
        near(model(ids).logits, want, 1e-4)


def test_every_recorded_case_is_present():
    if not RECORDED:
        pytest.skip(f"{REFERENCE} is not here: what PEFT recorded is read from it")
    assert len(RECORDED) == 19 and set(RECORDED) > IN_FRONT


def meta(case: str) -> dict[str, Any]:
    return json.loads((REFERENCE / case / "meta.json").read_text())
