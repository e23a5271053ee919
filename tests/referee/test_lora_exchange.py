"""LoRA against PEFT: each loads what the other saves, and one AdamW step ends alike."""

import json
import warnings

import pytest
import torch
from torch import nn

import lorica
from lorica.formats.peft.layouts import layout_for
from tests.laws.bases import IDS, move
from tests.marks import slow_but
from tests.referee.lora_cases import (
    MATRIX,
    QUICK,
    each_case,
    with_our_adapter,
    with_peft_adapter,
)
from tests.referee.models import llama, logits, near

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, which are not ours to fix


@each_case
def test_peft_loads_what_we_save(case, tmp_path):
    from peft import PeftModel

    model, base = with_our_adapter(case), MATRIX[case][0]()
    lorica.save(model, tmp_path / "ours")
    want = logits(model)
    assert (want - logits(base)).abs().max() > 1e-4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "ours"))
    assert not [str(w.message) for w in caught if "missing" in str(w.message).lower()]
    near(logits(loaded), want, 1e-5)


@each_case
def test_we_load_what_peft_saves(case, tmp_path):
    model = with_peft_adapter(case)
    model.save_pretrained(str(tmp_path))
    want = logits(model)
    fresh = MATRIX[case][0]()
    lorica.load(fresh, tmp_path)
    near(logits(fresh), want, 1e-5)
    lorica.merge(fresh)
    near(logits(fresh), want, 1e-4)


STEPPED = [
    c
    for c in MATRIX
    if "saved" not in c
    and "tokens" not in c
    and c != "olora"  # its base is rounded to float32, and a gradient near 0 changes its sign
]


@pytest.mark.parametrize("case", slow_but(QUICK & {*STEPPED}, STEPPED))
def test_one_step_of_adamw_ends_where_pefts_does(case, tmp_path):
    from peft import get_peft_model_state_dict

    peft_model, model = with_peft_adapter(case), MATRIX[case][0]()
    peft_model.save_pretrained(str(tmp_path))
    lorica.load(model, tmp_path)
    for trained in (peft_model, model):
        trained.double().train()  # AdamW's first step is a sign: in float32 that of rounding noise
        for module in trained.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        learned = [p for p in trained.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=1e-3, weight_decay=0.01)
        trained(IDS).logits.log_softmax(-1).square().mean().backward()
        optimizer.step()
    got = layout_for(model, "default").write(model, "default")
    want = get_peft_model_state_dict(peft_model)
    want = {k: t for k, t in want.items() if ".base_layer." not in k and k in got}
    assert got.keys() == want.keys()
    for (
        key
    ) in want:  # of a start that is taken out, ours has twice the rank: its own, and the start
        rows = tuple(slice(n) for n in want[key].shape)
        near(got[key][rows], want[key], 1e-6)


def test_only_pefts_own_keys_are_written(tmp_path):
    from peft import LoraConfig

    cases = ("patterns", "dora embedding", "tokens and norm", "gpt2 bias", "classifier", "regex")
    for number, case in enumerate(cases):
        lorica.save(with_our_adapter(case), tmp_path / str(number))
        config = json.loads((tmp_path / str(number) / "adapter_config.json").read_text())
        assert config.keys() <= LoraConfig.__dataclass_fields__.keys() | {"peft_type"}


def test_a_target_that_selects_nothing_in_peft_gives_a_notice(tmp_path):
    """PEFT loads a config of which some entries select nothing; so the file is valid."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "query_key_value"],
        exclude_modules=["nothing"],
        rank_pattern={"no_such": 3},
    )
    model = move(get_peft_model(llama(), config))
    model.save_pretrained(str(tmp_path))
    fresh = llama()
    lines = lorica.load(fresh, tmp_path)
    near(logits(fresh), logits(model), 1e-5)
    for entry in ("query_key_value", "nothing", "no_such"):
        assert any(entry in line for line in lines)


@pytest.mark.parametrize("case", ["saved both, tied", "roberta", "classifier", "head, tied"])
def test_peft_loads_what_we_saved_of_its_adapter(case, tmp_path):
    from peft import PeftModel

    model = with_peft_adapter(case)
    model.save_pretrained(str(tmp_path / "theirs"))
    between = MATRIX[case][0]()
    lorica.load(between, tmp_path / "theirs")
    lorica.save(between, tmp_path / "ours")
    again = MATRIX[case][0]()
    assert lorica.load(again, tmp_path / "ours") == []
    near(logits(again), logits(model), 1e-5)
    loaded = PeftModel.from_pretrained(MATRIX[case][0](), str(tmp_path / "ours"))
    near(logits(loaded), logits(model), 1e-5)
