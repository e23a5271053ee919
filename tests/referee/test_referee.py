"""Against PEFT: what it wrote and gave (../shared/referee), and what it reads and does today.

Every combination of `MATRIX` goes three ways: what we save PEFT loads, what PEFT saves we load,
and one step of AdamW from the same start ends at the same numbers.
"""

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lorica
from lorica import Dora, Lora
from lorica.core.bank import adapted_layers, spec_of
from lorica.errors import FileError, MergeError
from lorica.formats.peft.layouts import layout_for
from tests.laws.bases import IDS, SHARED, Stack, gpt2, move, stories

REFERENCE = SHARED / "referee/peft-reference"
IN_FRONT = {"p-tuning", "prefix-tuning", "prompt-tuning"}  # no weight, so nothing to merge
RECORDED = sorted(p.name for p in REFERENCE.iterdir()) if REFERENCE.is_dir() else []
pytestmark = pytest.mark.filterwarnings("ignore")  # of peft's own, which are not ours to mend


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def near(got: torch.Tensor, want: torch.Tensor, exact: float) -> None:
    torch.testing.assert_close(got, want, atol=exact, rtol=exact)


@pytest.mark.parametrize("case", RECORDED)
def test_what_peft_recorded(case, tmp_path):
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


def test_every_case_is_there():
    if not RECORDED:
        pytest.skip(f"{REFERENCE} is not here: what PEFT recorded is read from it")
    assert len(RECORDED) == 19 and set(RECORDED) > IN_FRONT


def meta(case: str) -> dict[str, Any]:
    return json.loads((REFERENCE / case / "meta.json").read_text())


def llama(**settings: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    kind = LlamaForSequenceClassification if "num_labels" in settings else LlamaForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(
            LlamaConfig(
                **{
                    "vocab_size": 64,
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "tie_word_embeddings": False,
                    "pad_token_id": 0,
                    "attention_bias": True,
                    **settings,
                }
            )
        ).eval()


def roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RobertaForSequenceClassification(
            RobertaConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=1,
                num_labels=3,
                num_attention_heads=2,
                intermediate_size=48,
                pad_token_id=0,
            )
        ).eval()


def sorter() -> nn.Module:
    return llama(num_labels=3)


def gemma(window: int = 8) -> nn.Module:
    """Its embedding multiplies what it reads by the square root of the width."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma3ForCausalLM(
            Gemma3TextConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                head_dim=16,
                num_attention_heads=2,
                num_key_value_heads=1,
                sliding_window=window,
            )
        ).eval()


QV = ["q_proj", "v_proj"]
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MATRIX: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (stories, {"target_modules": QV, "r": 4}),
    "all-linear": (stories, {"target_modules": "all-linear", "r": 8, "lora_alpha": 3}),
    "rslora": (llama, {"target_modules": QV, "r": 4, "use_rslora": True}),
    "dora": (llama, {"target_modules": LINEARS, "r": 4, "use_dora": True}),
    "dora rslora": (llama, {"target_modules": QV, "use_dora": True, "use_rslora": True}),
    "patterns": (
        stories,
        {
            "target_modules": LINEARS,
            "r": 4,
            "rank_pattern": {"down_proj": 2, "layers.0.self_attn.q_proj": 6},
            "alpha_pattern": {r"layers\.[12]\..*_proj": 3},
        },
    ),
    "dora patterns": (
        llama,
        {"target_modules": LINEARS, "use_dora": True, "rank_pattern": {"mlp.*": 3}},
    ),
    "rslora patterns": (
        llama,
        {
            "target_modules": LINEARS,
            "use_rslora": True,
            "rank_pattern": {"up_proj": 3},
            "alpha_pattern": {"up_proj": 5, "o_proj": 1},
        },
    ),
    "bias": (llama, {"target_modules": QV, "lora_bias": True}),
    "embedding, tied": (stories, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding, untied": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "dora embedding": (llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "head, tied": (stories, {"target_modules": ["lm_head", "q_proj"]}),
    "head, untied": (llama, {"target_modules": ["lm_head", "q_proj"]}),
    "saved norm": (stories, {"target_modules": QV, "modules_to_save": ["norm"]}),
    "saved norms": (llama, {"target_modules": QV, "modules_to_save": ["input_layernorm"]}),
    "saved head, tied": (stories, {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "saved head, untied": (llama, {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "saved embedding, tied": (stories, {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "saved embedding, untied": (llama, {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "saved both, tied": (
        stories,
        {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "saved both, untied": (
        llama,
        {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "tokens, tied": (stories, {"target_modules": QV, "trainable_token_indices": [5, 17, 30]}),
    "tokens, untied": (llama, {"target_modules": QV, "trainable_token_indices": [5, 17, 30]}),
    "tokens and norm": (
        llama,
        {"target_modules": QV, "trainable_token_indices": [9], "modules_to_save": ["norm"]},
    ),
    "exclude": (llama, {"target_modules": LINEARS, "exclude_modules": ["k_proj"]}),
    "exclude by regex": (llama, {"target_modules": LINEARS, "exclude_modules": r".*mlp.*"}),
    "blocks": (llama, {"target_modules": QV, "layers_to_transform": [1]}),
    "regex": (llama, {"target_modules": r".*\.layers\.0\..*(q|down)_proj"}),
    "one full name": (llama, {"target_modules": ["model.layers.1.self_attn.o_proj"]}),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "gpt2 dora": (
        gpt2,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "gpt2 embedding": (gpt2, {"target_modules": ["wte"]}),
    "gpt2 bias": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}),
    "gemma embedding": (gemma, {"target_modules": ["embed_tokens", "q_proj"]}),
    "gemma dora embedding": (gemma, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "gemma tokens": (gemma, {"target_modules": QV, "trainable_token_indices": [5, 17]}),
    "classifier": (
        sorter,
        {"target_modules": QV, "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    ),
    "classifier all-linear": (
        sorter,
        {"target_modules": "all-linear", "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    ),
    "pissa": (stories, {"target_modules": QV, "r": 4, "init_lora_weights": "pissa"}),
    "pissa rslora patterns": (
        llama,
        {
            "target_modules": LINEARS,
            "r": 4,
            "use_rslora": True,
            "init_lora_weights": "pissa",
            "rank_pattern": {"up_proj": 3},
            "alpha_pattern": {"up_proj": 5, "o_proj": 1},
        },
    ),
    "pissa dora": (llama, {"target_modules": QV, "use_dora": True, "init_lora_weights": "pissa"}),
    "pissa gpt2": (
        gpt2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": "pissa"},
    ),
    "olora": (stories, {"target_modules": QV, "r": 4, "init_lora_weights": "olora"}),
    "olora dora": (llama, {"target_modules": QV, "use_dora": True, "init_lora_weights": "olora"}),
    "roberta": (
        roberta,
        {
            "target_modules": ["query", "value"],
            "task_type": "SEQ_CLS",
            "modules_to_save": ["classifier"],
        },
    ),
}
every = pytest.mark.parametrize("case", MATRIX)
OURS = {"lora_alpha": "alpha", "init_lora_weights": "init"}


def ours(case: str) -> nn.Module:
    """A base with our adapter, moved."""
    make, settings = MATRIX[case]
    words = {"r", "lora_alpha", "use_rslora", "lora_bias", "init_lora_weights"}
    kind = Dora if settings.get("use_dora") else Lora
    method = kind(**{OURS.get(k, k): v for k, v in settings.items() if k in words})
    drop = words | {"use_dora", "fan_in_fan_out", "task_type"}
    targets = {k: v for k, v in settings.items() if k not in drop}
    return move(lorica.adapt(make(), method, **targets))


def theirs(case: str) -> nn.Module:
    """A base with PEFT's adapter, moved."""
    from peft import LoraConfig, get_peft_model

    make, settings = MATRIX[case]
    settings = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, **copy.deepcopy(settings)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = make()
        torch.manual_seed(0)  # PEFT starts from the global state; every run tests the same start
        model = get_peft_model(base, LoraConfig(**settings))
    return move(model)


@every
def test_what_we_save_peft_loads(case, tmp_path):
    from peft import PeftModel

    model, base = ours(case), MATRIX[case][0]()
    lorica.save(model, tmp_path / "ours")
    want = logits(model)
    assert (want - logits(base)).abs().max() > 1e-4
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "ours"))
    assert not [str(w.message) for w in said if "missing" in str(w.message).lower()]
    near(logits(loaded), want, 1e-5)


@every
def test_what_peft_saves_we_load(case, tmp_path):
    model = theirs(case)
    model.save_pretrained(str(tmp_path))
    want = logits(model)
    fresh = MATRIX[case][0]()
    lorica.load(fresh, tmp_path)
    near(logits(fresh), want, 1e-5)
    lorica.merge(fresh)
    near(logits(fresh), want, 1e-4)


def test_a_bias_beside_a_start_that_peft_has_without_one_only(tmp_path):
    from peft import PeftModel

    model = move(lorica.adapt(llama(), Lora(r=4, init="pissa", lora_bias=True)))
    lorica.save(model, tmp_path / "ours")
    near(logits(PeftModel.from_pretrained(llama(), str(tmp_path / "ours"))), logits(model), 1e-5)


def test_ranks_that_eva_dealt_out_go_along(tmp_path):
    from peft import PeftModel

    from lorica.inits.eva import calibrate

    model = lorica.adapt(stories(), Lora(r=4, init="eva"), target_modules=LINEARS)
    assert len(set(calibrate(model, [{"input_ids": IDS}]).values())) > 1
    path = lorica.save(move(model), tmp_path / "ours")
    want = logits(model)
    near(logits(PeftModel.from_pretrained(stories(), str(path))), want, 2e-5)
    fresh, plain = stories(), stories()
    assert lorica.load(fresh, path) == [] and torch.equal(logits(fresh), want)
    (path / "manifest.json").unlink()
    lorica.load(plain, path)
    assert torch.equal(logits(plain), want)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_is_taken_out_is_a_plain_lora_on_disk(start, tmp_path):
    model = move(lorica.adapt(stories(), Lora(r=4, alpha=6, init=start), target_modules=QV))
    path = lorica.save(model, tmp_path / "ours")
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 12) and "init_lora_weights" not in config
    fresh = stories()
    lorica.load(fresh, path)
    assert torch.equal(logits(fresh), logits(model))  # not a bit is lost
    (path / "manifest.json").unlink()
    plain = stories()
    lorica.load(plain, path)
    assert spec_of(plain, "default").method == Lora(r=8, alpha=12)
    near(logits(plain), logits(model), 1e-5)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_on_another_base_than_it_was_remade_from_is_refused(start, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["up"], init_lora_weights=start)
    get_peft_model(Stack(), config).save_pretrained(str(tmp_path))
    assert lorica.load(Stack(), tmp_path)
    model = Stack(packed=True)
    with pytest.raises(FileError, match=f"{start} of the float base") as error:
        lorica.load(model, tmp_path)
    assert error.value.fix == "load the base without quantisation" and not list(
        adapted_layers(model)
    )


def test_olora_on_transposed_weights_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["attn.c_proj"],
        fan_in_fan_out=True,
        init_lora_weights="olora",
    )
    get_peft_model(gpt2(), config).save_pretrained(str(tmp_path))
    with pytest.raises(FileError, match="transposed"):
        lorica.load(gpt2(), tmp_path)


STEPPED = [
    c
    for c in MATRIX
    if "saved" not in c
    and "tokens" not in c
    and c != "olora"  # its base is rounded to float32, and a gradient near 0 changes its sign
]


@pytest.mark.parametrize("case", STEPPED)
def test_one_step_of_adamw_ends_where_pefts_does(case, tmp_path):
    from peft import get_peft_model_state_dict

    peft_model, model = theirs(case), MATRIX[case][0]()
    peft_model.save_pretrained(str(tmp_path))
    lorica.load(model, tmp_path)
    for one in (peft_model, model):
        one.double().train()  # AdamW's first step is a sign: in float32 that of rounding noise
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        learned = [p for p in one.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=1e-3, weight_decay=0.01)
        one(IDS).logits.log_softmax(-1).square().mean().backward()
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
        lorica.save(ours(case), tmp_path / str(number))
        config = json.loads((tmp_path / str(number) / "adapter_config.json").read_text())
        assert config.keys() <= LoraConfig.__dataclass_fields__.keys() | {"peft_type"}


def test_a_target_that_peft_passed_over_is_passed_over_and_named(tmp_path):
    """PEFT loads a config of which some entries select nothing; so the file is a valid one."""
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
def test_what_peft_saved_and_we_saved_again_peft_loads(case, tmp_path):
    from peft import PeftModel

    model = theirs(case)
    model.save_pretrained(str(tmp_path / "theirs"))
    between = MATRIX[case][0]()
    lorica.load(between, tmp_path / "theirs")
    lorica.save(between, tmp_path / "ours")
    again = MATRIX[case][0]()
    assert lorica.load(again, tmp_path / "ours") == []
    near(logits(again), logits(model), 1e-5)
    loaded = PeftModel.from_pretrained(MATRIX[case][0](), str(tmp_path / "ours"))
    near(logits(loaded), logits(model), 1e-5)
