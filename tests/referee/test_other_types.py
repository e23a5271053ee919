"""Methods of PEFT other than LoRA: each loads what the other saves, with several settings."""

import json
import warnings

import pytest
import torch

import lorica
from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers, spec_of
from lorica.errors import FileError
from tests.laws.bases import gpt2, move, small_llama
from tests.marks import slow_but
from tests.referee.models import QV, gemma, near
from tests.referee.other_cases import (
    CASES,
    OUR_CASES,
    each_case,
    loaded_by_peft,
    token_logits,
    with_peft_adapter,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's own, which are not ours to fix


def assert_differs(case: str, want: torch.Tensor) -> None:
    assert (want - token_logits(CASES[case][1]())).abs().max() > 1e-4


@each_case
def test_we_load_what_peft_saves_and_peft_loads_it_again(case, tmp_path):
    model = with_peft_adapter(case)
    model.save_pretrained(str(tmp_path / "theirs"))
    want = token_logits(model)
    assert_differs(case, want)
    fresh, again = CASES[case][1](), CASES[case][1]()
    lorica.load(fresh, tmp_path / "theirs")
    near(token_logits(fresh), want, 1e-5)
    lorica.save(fresh, tmp_path / "ours")
    assert not [line for line in lorica.load(again, tmp_path / "ours") if "new" not in line]
    assert torch.equal(token_logits(again), token_logits(fresh))
    near(token_logits(loaded_by_peft(case, tmp_path / "ours")), want, 1e-5)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not any(word in case for word in ("tied", "tokens", "p-tuning", "projected")):
        assert lorica.trainable_parameters(fresh).trainable == trained


QUICK = {
    *("adalora grown", "adalora rows", "vera gpt2", "vera some layers"),
    *("ia3 head", "prefix network", "prefix rows", "prompt text"),
}


@pytest.mark.parametrize("case", slow_but(QUICK, OUR_CASES))
def test_peft_loads_what_we_save(case, tmp_path):
    from peft import PeftModel

    make, name, settings, targets = OUR_CASES[case]
    model = lorica.adapt(make(), Method.named(name)(**settings), **targets)
    move(model, size=0.3 if make is gpt2 else 0.1)
    want = token_logits(model)
    path = lorica.save(model, tmp_path / "ours")
    assert (want - token_logits(make())).abs().max() > 1e-4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft_model = PeftModel.from_pretrained(make(), str(path))
    assert not [w for w in caught if "missing" in str(w.message).lower()]
    near(token_logits(peft_model), want, 1e-5)
    fresh = make()
    lorica.load(fresh, path)
    assert torch.equal(token_logits(fresh), want)
    (path / "manifest.json").unlink()
    plain = make()
    lorica.load(plain, path)
    near(token_logits(plain), want, 1e-5)


def test_components_that_peft_pruned_are_loaded_as_zeros(tmp_path):
    model = with_peft_adapter("adalora")
    kept = [True, False, True, True, False, False]
    for module in model.modules():
        if hasattr(module, "lora_E"):
            with torch.no_grad():
                module.lora_E["default"][[not on for on in kept]] = 0
    name = "model.layers.{}.self_attn.{}.lora_E"
    model.peft_config["default"].rank_pattern = {
        name.format(i, layer): kept for i in range(5) for layer in QV
    }
    want = token_logits(model)
    model.save_pretrained(str(tmp_path))
    fresh = small_llama()
    lorica.load(fresh, tmp_path)
    near(token_logits(fresh), want, 1e-5)
    for _, _, adapters in adapted_layers(fresh):
        assert (adapters["default"].e.detach() != 0).tolist() == kept
    near(token_logits(loaded_by_peft("adalora", tmp_path)), want, 1e-5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["rank_pattern"][name.format(0, "q_proj")] = [True] * 6
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match="keeps 6 components, and the file has 3"):
        lorica.load(small_llama(), tmp_path)


@pytest.mark.parametrize("settings", [{"alpha_pattern": {"q_proj": 40}}, {"use_rslora": True}])
def test_settings_that_adalora_of_peft_ignores(settings, tmp_path):
    plain, odd = with_peft_adapter("adalora"), with_peft_adapter("adalora", **settings)
    assert torch.equal(token_logits(plain), token_logits(odd))
    odd.save_pretrained(str(tmp_path))
    fresh = small_llama()
    lorica.load(fresh, tmp_path)
    near(token_logits(fresh), token_logits(odd), 1e-5)


def test_training_settings_of_adalora_go_both_ways(tmp_path):
    settings = {
        "tinit": 7,
        "tfinal": 9,
        "deltaT": 3,
        "beta1": 0.7,
        "beta2": 0.6,
        "orth_reg_weight": 0.25,
    }
    with_peft_adapter("adalora", **settings).save_pretrained(str(tmp_path / "theirs"))
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "theirs")
    method = spec_of(fresh, "default").method
    assert {key: getattr(method, key) for key in settings} == settings
    assert (method.r, method.target_r, method.alpha) == (6, 3, 8)
    lorica.save(fresh, tmp_path / "ours")
    config = loaded_by_peft("adalora", tmp_path / "ours").peft_config["default"]
    assert {key: getattr(config, key) for key in settings} == settings
    assert (config.init_r, config.target_r, config.lora_alpha) == (6, 3, 8)


@pytest.mark.parametrize("case", OUR_CASES)
def test_only_pefts_own_keys_are_written(case, tmp_path):
    import peft

    make, name, settings, targets = OUR_CASES[case]
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


def test_a_window_that_is_shorter_than_the_row_gives_a_notice(tmp_path):
    """PEFT puts virtual tokens into the cache, where a window leaves them behind."""
    import peft

    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = move(peft.get_peft_model(gemma(8), config))
    model.save_pretrained(str(tmp_path))
    fresh = gemma(8)
    assert any("windows of 8 tokens" in line for line in lorica.load(fresh, tmp_path))
    assert (token_logits(fresh) - token_logits(model)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["prefix_tuning", "prompt_tuning"])
def test_the_reparametrisation_network_is_saved_with_the_table(name, tmp_path):
    from safetensors.torch import load_file, save_file

    kind = Method.named(name)
    model = move(lorica.adapt(small_llama(), kind(num_virtual_tokens=3, reparametrisation=5)))
    path = lorica.save(model, tmp_path / "ours")
    (path / "manifest.json").unlink()
    plain = small_llama()
    lorica.load(plain, path)
    assert spec_of(plain, "default").method.reparametrisation == 5
    assert torch.equal(token_logits(plain), token_logits(model))
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
