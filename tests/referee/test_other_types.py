"""Against PEFT, for the methods that are not its LORA: both ways, with several settings each.

What we save PEFT loads, what PEFT saves we load, and what we save of that PEFT loads again.
"""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorica
from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers, spec_of
from lorica.errors import FileError
from tests.laws.bases import IDS, Stack, gpt2, move, small_llama
from tests.referee.test_referee import LINEARS, QV, gemma, llama, near, sorter
from tests.referee.test_referee import logits as all_logits

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft's own, which are not ours to mend
ADA = {"total_step": 100, "init_r": 6, "target_r": 3, "lora_alpha": 8}
KVD = ["k_proj", "v_proj", "down_proj"]


def wide() -> nn.Module:
    """A Gemma whose window is longer than the rows."""
    return gemma(64)


CASES: dict[str, tuple[str, Callable[[], nn.Module], dict[str, Any]]] = {
    "adalora": ("AdaLora", small_llama, {**ADA, "target_modules": QV}),
    "adalora all-linear": ("AdaLora", llama, {**ADA, "target_modules": "all-linear"}),
    "adalora scale": ("AdaLora", llama, {**ADA, "target_modules": LINEARS, "lora_alpha": 5}),
    "adalora gpt2": (
        "AdaLora",
        gpt2,
        {**ADA, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    ),
    "adalora saved norm": (
        "AdaLora",
        small_llama,
        {**ADA, "target_modules": QV, "modules_to_save": ["norm"]},
    ),
    "adalora tokens": (
        "AdaLora",
        small_llama,
        {**ADA, "target_modules": QV, "trainable_token_indices": [5, 17]},
    ),
    "adalora classifier": (
        "AdaLora",
        sorter,
        {**ADA, "target_modules": QV, "modules_to_save": ["score"], "task_type": "SEQ_CLS"},
    ),
    "vera": ("Vera", small_llama, {"target_modules": ["q_proj", "o_proj"], "r": 16}),
    "vera all-linear": (
        "Vera",
        small_llama,
        {"target_modules": LINEARS, "r": 12, "d_initial": 0.3},
    ),
    "vera drawn anew": (
        "Vera",
        small_llama,
        {"target_modules": QV, "r": 8, "save_projection": False, "projection_prng_key": 5},
    ),
    "vera gpt2": ("Vera", gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "vera saved head, tied": (
        "Vera",
        small_llama,
        {"target_modules": QV, "r": 8, "modules_to_save": ["lm_head"]},
    ),
    "vera blocks": ("Vera", llama, {"target_modules": QV, "r": 8, "layers_to_transform": [1]}),
    "vera classifier": (
        "Vera",
        sorter,
        {"target_modules": QV, "r": 8, "modules_to_save": ["score"], "task_type": "SEQ_CLS"},
    ),
    "ia3": ("IA3", small_llama, {"target_modules": KVD, "feedforward_modules": ["down_proj"]}),
    "ia3 biases": ("IA3", llama, {"target_modules": KVD, "feedforward_modules": ["down_proj"]}),
    "ia3 no feedforward": (
        "IA3",
        llama,
        {"target_modules": ["q_proj", "up_proj"], "feedforward_modules": []},
    ),
    "ia3 some feedforward": (
        "IA3",
        llama,
        {
            "target_modules": ["k_proj", "layers.0.mlp.down_proj", "layers.1.mlp.down_proj"],
            "feedforward_modules": ["layers.1.mlp.down_proj"],
        },
    ),
    "ia3 regex": (
        "IA3",
        llama,
        {"target_modules": r".*(k_proj|up_proj)", "feedforward_modules": r".*up_proj"},
    ),
    "ia3 gpt2": (
        "IA3",
        gpt2,
        {
            "target_modules": ["c_attn", "mlp.c_proj"],
            "feedforward_modules": ["mlp.c_proj"],
            "fan_in_fan_out": True,
        },
    ),
    "ia3 exclude": (
        "IA3",
        llama,
        {
            "target_modules": KVD,
            "feedforward_modules": ["down_proj"],
            "exclude_modules": ["layers.0.mlp.down_proj"],
        },
    ),
    "ia3 saved norms": (
        "IA3",
        llama,
        {
            "target_modules": KVD,
            "feedforward_modules": ["down_proj"],
            "modules_to_save": ["input_layernorm"],
        },
    ),
    "ia3 classifier": (
        "IA3",
        sorter,
        {
            "target_modules": KVD,
            "feedforward_modules": ["down_proj"],
            "modules_to_save": ["score"],
            "task_type": "SEQ_CLS",
        },
    ),
    "prefix": ("PrefixTuning", small_llama, {"num_virtual_tokens": 5}),
    "prefix projected": (
        "PrefixTuning",
        llama,
        {"num_virtual_tokens": 4, "prefix_projection": True, "encoder_hidden_size": 10},
    ),
    "prefix zero": ("PrefixTuning", llama, {"num_virtual_tokens": 1, "init_weights": "zero"}),
    "prefix gpt2": ("PrefixTuning", gpt2, {"num_virtual_tokens": 4}),
    "prefix gemma": ("PrefixTuning", wide, {"num_virtual_tokens": 2}),
    "prefix saved head": (
        "PrefixTuning",
        llama,
        {"num_virtual_tokens": 4, "modules_to_save": ["lm_head"]},
    ),
    "prefix classifier": (
        "PrefixTuning",
        sorter,
        {"num_virtual_tokens": 4, "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    ),
    "prompt": ("PromptTuning", small_llama, {"num_virtual_tokens": 5}),
    "prompt of the vocabulary": (
        "PromptTuning",
        llama,
        {"num_virtual_tokens": 7, "prompt_tuning_init": "SAMPLE_VOCAB"},
    ),
    "prompt gpt2": ("PromptTuning", gpt2, {"num_virtual_tokens": 4}),
    "prompt gemma": ("PromptTuning", wide, {"num_virtual_tokens": 2}),
    "prompt saved norms": (
        "PromptTuning",
        llama,
        {"num_virtual_tokens": 4, "modules_to_save": ["norm"]},
    ),
    "prompt classifier": (
        "PromptTuning",
        sorter,
        {"num_virtual_tokens": 4, "task_type": "SEQ_CLS", "modules_to_save": ["score"]},
    ),
    "p-tuning": ("PromptEncoder", small_llama, {"num_virtual_tokens": 5, "encoder_hidden_size": 9}),
    "p-tuning lstm": (
        "PromptEncoder",
        llama,
        {
            "num_virtual_tokens": 5,
            "encoder_hidden_size": 9,
            "encoder_num_layers": 1,
            "encoder_reparameterization_type": "LSTM",
        },
    ),
}
every = pytest.mark.parametrize("case", CASES)


def logits(model: nn.Module) -> torch.Tensor:
    """Of the tokens: PEFT gives those of the virtual ones before them as well."""
    found = all_logits(model)
    return found[:, -IDS.shape[1] :] if found.ndim == 3 else found


def theirs(case: str, **more: Any) -> nn.Module:
    """A base with PEFT's adapter, moved."""
    import peft

    kind, make, settings = CASES[case]
    config = getattr(peft, f"{kind}Config")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = make()
        torch.manual_seed(0)
        model = peft.get_peft_model(
            base, config(**{"task_type": "CAUSAL_LM", **copy.deepcopy(settings), **more})
        )
    return move(model, size=0.3 if make is gpt2 else 0.1)  # gpt2's own weights are small


def loaded(case: str, path: Path) -> nn.Module:
    """A fresh base of the case with what is at `path`, loaded by PEFT, without complaint."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(CASES[case][1](), str(path))
    assert not [w for w in said if "missing" in str(w.message).lower()]
    return model


def differs(case: str, want: torch.Tensor) -> None:
    assert (want - logits(CASES[case][1]())).abs().max() > 1e-4


@every
def test_what_peft_saves_we_load_and_save_again(case, tmp_path):
    model = theirs(case)
    model.save_pretrained(str(tmp_path / "theirs"))
    want = logits(model)
    differs(case, want)
    fresh, again = CASES[case][1](), CASES[case][1]()
    lorica.load(fresh, tmp_path / "theirs")
    near(logits(fresh), want, 1e-5)
    lorica.save(fresh, tmp_path / "ours")
    assert not [line for line in lorica.load(again, tmp_path / "ours") if "new" not in line]
    assert torch.equal(logits(again), logits(fresh))
    near(logits(loaded(case, tmp_path / "ours")), want, 1e-5)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not any(word in case for word in ("tied", "tokens", "p-tuning", "projected")):
        assert lorica.trainable_parameters(fresh).trainable == trained


OURS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any], dict[str, Any]]] = {
    "adalora": (small_llama, "adalora", {"r": 5}, {}),
    "adalora alpha": (llama, "adalora", {"r": 4, "alpha": 3, "tinit": 5}, {}),
    "adalora grown": (llama, "adalora", {"r": 4, "mode": "increase"}, {"target_modules": QV}),
    "adalora gpt2": (gpt2, "adalora", {"r": 4}, {}),
    "adalora rows": (
        small_llama,
        "adalora",
        {"r": 4},
        {"target_modules": QV, "trainable_token_indices": [3, 9], "modules_to_save": ["norm"]},
    ),
    "vera": (small_llama, "vera", {"r": 16}, {}),
    "vera gpt2": (gpt2, "vera", {"r": 16, "d_initial": 0.5}, {}),
    "vera some layers": (
        llama,
        "vera",
        {"r": 8},
        {"target_modules": ["layers.0.self_attn.q_proj", "up_proj"]},
    ),
    "vera drawn anew": (small_llama, "vera", {"r": 8, "save_projection": False}, {"seed": 7}),
    "ia3": (small_llama, "ia3", {}, {}),
    "ia3 gpt2": (gpt2, "ia3", {}, {}),
    "ia3 by name": (
        llama,
        "ia3",
        {"feedforward_modules": ["1.mlp.up_proj"]},
        {"target_modules": ["up_proj", "o_proj"]},
    ),
    "ia3 none": (llama, "ia3", {"feedforward_modules": []}, {"target_modules": "all-linear"}),
    "ia3 head": (sorter, "ia3", {}, {"modules_to_save": ["score"]}),
    "prefix": (small_llama, "prefix_tuning", {"num_virtual_tokens": 6}, {}),
    "prefix network": (
        llama,
        "prefix_tuning",
        {"num_virtual_tokens": 6, "reparametrisation": 7},
        {},
    ),
    "prefix gpt2": (gpt2, "prefix_tuning", {"num_virtual_tokens": 3}, {}),
    "prefix rows": (
        llama,
        "prefix_tuning",
        {"num_virtual_tokens": 3},
        {"modules_to_save": ["norm"]},
    ),
    "prompt": (small_llama, "prompt_tuning", {"num_virtual_tokens": 6}, {}),
    "prompt network": (
        llama,
        "prompt_tuning",
        {"num_virtual_tokens": 6, "reparametrisation": 7},
        {},
    ),
    "prompt text": (
        gpt2,
        "prompt_tuning",
        {"num_virtual_tokens": 3, "init": "text", "init_ids": (5, 6)},
        {},
    ),
    "prompt head": (sorter, "prompt_tuning", {}, {"modules_to_save": ["score"]}),
}


@pytest.mark.parametrize("case", OURS)
def test_what_we_save_peft_loads(case, tmp_path):
    from peft import PeftModel

    make, name, settings, targets = OURS[case]
    model = lorica.adapt(make(), Method.named(name)(**settings), **targets)
    move(model, size=0.3 if make is gpt2 else 0.1)
    want = logits(model)
    path = lorica.save(model, tmp_path / "ours")
    assert (want - logits(make())).abs().max() > 1e-4
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        peft_model = PeftModel.from_pretrained(make(), str(path))
    assert not [w for w in said if "missing" in str(w.message).lower()]
    near(logits(peft_model), want, 1e-5)
    fresh = make()
    lorica.load(fresh, path)
    assert torch.equal(logits(fresh), want)
    (path / "manifest.json").unlink()
    plain = make()
    lorica.load(plain, path)
    near(logits(plain), want, 1e-5)


def test_components_that_peft_cut_out_come_back_as_zeros(tmp_path):
    model = theirs("adalora")
    kept = [True, False, True, True, False, False]
    for module in model.modules():
        if hasattr(module, "lora_E"):
            with torch.no_grad():
                module.lora_E["default"][[not on for on in kept]] = 0
    name = "model.layers.{}.self_attn.{}.lora_E"
    model.peft_config["default"].rank_pattern = {
        name.format(i, layer): kept for i in range(5) for layer in QV
    }
    want = logits(model)
    model.save_pretrained(str(tmp_path))
    fresh = small_llama()
    lorica.load(fresh, tmp_path)
    near(logits(fresh), want, 1e-5)
    for _, _, adapters in adapted_layers(fresh):
        assert (adapters["default"].e.detach() != 0).tolist() == kept
    near(logits(loaded("adalora", tmp_path)), want, 1e-5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["rank_pattern"][name.format(0, "q_proj")] = [True] * 6
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="keeps 6 components, and the file has 3"):
        lorica.load(small_llama(), tmp_path)


@pytest.mark.parametrize("settings", [{"alpha_pattern": {"q_proj": 40}}, {"use_rslora": True}])
def test_settings_that_pefts_adalora_takes_no_notice_of(settings, tmp_path):
    plain, odd = theirs("adalora"), theirs("adalora", **settings)
    assert torch.equal(logits(plain), logits(odd))
    odd.save_pretrained(str(tmp_path))
    fresh = small_llama()
    lorica.load(fresh, tmp_path)
    near(logits(fresh), logits(odd), 1e-5)


def test_training_settings_of_adalora_go_both_ways(tmp_path):
    settings = {
        "tinit": 7,
        "tfinal": 9,
        "deltaT": 3,
        "beta1": 0.7,
        "beta2": 0.6,
        "orth_reg_weight": 0.25,
    }
    theirs("adalora", **settings).save_pretrained(str(tmp_path / "theirs"))
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "theirs")
    method = spec_of(fresh, "default").method
    assert {key: getattr(method, key) for key in settings} == settings
    assert (method.r, method.target_r, method.alpha) == (6, 3, 8)
    lorica.save(fresh, tmp_path / "ours")
    config = loaded("adalora", tmp_path / "ours").peft_config["default"]
    assert {key: getattr(config, key) for key in settings} == settings
    assert (config.init_r, config.target_r, config.lora_alpha) == (6, 3, 8)


@pytest.mark.parametrize("method", ["adalora", "vera"])
def test_ranks_of_their_own_are_nothing_that_peft_has(method, tmp_path):
    model = lorica.adapt(small_llama(), Method.named(method)(r=4), rank_pattern={"q_proj": 2})
    path = lorica.save(model, tmp_path / "ours")
    assert not (path / "adapter_config.json").exists()
    lorica.load(small_llama(), path)


@pytest.mark.parametrize("method", ["vera", "ia3"])
def test_rows_of_tokens_are_nothing_that_peft_has_beside_these(method, tmp_path):
    model = lorica.adapt(small_llama(), Method.named(method)(), trainable_token_indices=[5])
    path = lorica.save(model, tmp_path / "ours")
    assert not (path / "adapter_config.json").exists()
    lorica.load(small_llama(), path)


def test_a_method_that_extends_lora_is_not_said_to_be_one(tmp_path):
    model = lorica.adapt(small_llama(), Method.named("lora_fa")(r=2))
    path = lorica.save(model, tmp_path / "ours")
    assert not (path / "adapter_config.json").exists()
    lorica.load(small_llama(), path)


UNKNOWN = [
    ("adalora", {"use_dora": True}),
    ("adalora", {"bias": "all"}),
    ("adalora", {"lora_bias": True}),
    ("adalora", {"target_parameters": ["x"]}),
    ("vera", {"bias": "vera_only"}),
    ("vera", {"a_new_setting": 3}),
    ("ia3", {"a_new_setting": 3}),
    ("ia3", {"target_modules": []}),
    ("prefix", {"a_new_setting": 3}),
    ("prompt", {"prompt_tuning_x": "y"}),
    ("p-tuning", {"a_new_setting": [1]}),
    ("vera", {"trainable_token_indices": None, "x_new": {"a": 1}}),
]


@pytest.mark.parametrize("case, change", UNKNOWN)
def test_settings_that_are_not_known_are_refused(case, change, tmp_path):
    theirs(case).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    model = small_llama()
    with pytest.raises(FileError, match=list(change)[-1]):
        lorica.load(model, tmp_path)
    assert not list(adapted_layers(model))


def test_a_peft_type_that_is_not_read_is_named(tmp_path):
    from peft import OFTConfig, get_peft_model

    config = OFTConfig(target_modules=["up"], oft_block_size=4, r=0)
    get_peft_model(Stack(), config).save_pretrained(str(tmp_path))
    with pytest.raises(FileError, match="OFT") as error:
        lorica.load(Stack(), tmp_path)
    assert "ADALORA" in error.value.facts["known"]


@pytest.mark.parametrize("case", ["adalora", "vera", "ia3"])
def test_a_tensor_too_few_or_too_many_is_named(case, tmp_path):
    from safetensors.torch import load_file, save_file

    theirs(case).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if "layers.0" in k)
    save_file({k: t for k, t in tensors.items() if k != key}, file)
    with pytest.raises(FileError, match="does not fit") as error:
        lorica.load(small_llama(), tmp_path)
    assert "layers.0" in error.value.facts["missing"]
    save_file({**tensors, f"{key}_x": tensors[key].clone()}, file)
    with pytest.raises(FileError, match="does not fit") as error:
        lorica.load(small_llama(), tmp_path)
    assert f"{key}_x" in error.value.facts["extra"]
    save_file({**tensors, key: tensors[key].repeat(2, *([1] * (tensors[key].ndim - 1)))}, file)
    with pytest.raises(FileError, match=r"layers\.0"):
        lorica.load(small_llama(), tmp_path)


@pytest.mark.parametrize("case", OURS)
def test_only_pefts_own_keys_are_written(case, tmp_path):
    import peft

    make, name, settings, targets = OURS[case]
    model = lorica.adapt(make(), Method.named(name)(**settings), **targets)
    path = lorica.save(model, tmp_path / "ours")
    config = json.loads((path / "adapter_config.json").read_text())
    kind = {
        "adalora": "AdaLora",
        "vera": "Vera",
        "ia3": "IA3",
        "prefix_tuning": "PrefixTuning",
        "prompt_tuning": "PromptTuning",
    }[name]
    fields = getattr(peft, f"{kind}Config").__dataclass_fields__
    assert config.keys() <= fields.keys() | {"peft_type"}


def test_a_window_that_is_shorter_than_the_row_is_told(tmp_path):
    """PEFT puts virtual tokens into the cache, where a window leaves them behind."""
    import peft

    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = move(peft.get_peft_model(gemma(8), config))
    model.save_pretrained(str(tmp_path))
    fresh = gemma(8)
    assert any("windows of 8 tokens" in line for line in lorica.load(fresh, tmp_path))
    assert (logits(fresh) - logits(model)).abs().max() > 1e-4


def test_heads_of_another_shape_are_refused(tmp_path):
    """The table has as many numbers; what they mean is something else."""
    theirs("prefix").save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_attention_heads": 2}))
    with pytest.raises(FileError, match="other attention heads") as error:
        lorica.load(small_llama(), tmp_path)
    assert error.value.facts["base"] == "4 heads of 8"


def test_an_encoder_and_a_decoder_are_refused(tmp_path):
    theirs("prompt").save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_transformer_submodules": 2}))
    with pytest.raises(FileError, match="an encoder and a decoder"):
        lorica.load(small_llama(), tmp_path)


@pytest.mark.parametrize("name", ["prefix_tuning", "prompt_tuning"])
def test_the_network_stays_in_our_folder_beside_the_table(name, tmp_path):
    from safetensors.torch import load_file, save_file

    kind = Method.named(name)
    model = move(lorica.adapt(small_llama(), kind(num_virtual_tokens=3, reparametrisation=5)))
    path = lorica.save(model, tmp_path / "ours")
    (path / "manifest.json").unlink()
    plain = small_llama()
    lorica.load(plain, path)
    assert spec_of(plain, "default").method.reparametrisation == 5
    assert torch.equal(logits(plain), logits(model))
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["prompt_embeddings"] += 1
    save_file(tensors, file)
    with pytest.raises(FileError, match="not the output of its network"):
        lorica.load(small_llama(), path)
    del tensors["reparametrisation.e"]
    save_file(tensors, file)
    with pytest.raises(FileError, match=r"does not fit.*\n.*missing +model\.e"):
        lorica.load(small_llama(), path)
