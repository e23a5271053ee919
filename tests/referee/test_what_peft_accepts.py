"""The README's comparison with PEFT, run live: what PEFT accepts without a word, Lorica refuses."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import lorica
from lorica.errors import BaseError, ConfigError, LoricaError, TargetError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
IDS = torch.arange(12).view(2, 6)


def base(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(CONFIG).eval()


def move(model: torch.nn.Module) -> None:
    """Give every trainable tensor other values, as training would."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)


@contextmanager
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails if the block warns or logs a warning."""
    caplog.clear()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield
    assert not caplog.records


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    """A LoRA that PEFT trained on base(0) and saved."""
    model = get_peft_model(base(0), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    move(model)
    model.save_pretrained(tmp_path / "peft")
    return tmp_path / "peft"


def test_another_base_of_the_same_shapes(tmp_path, peft_folder, caplog):
    with silence(caplog):
        PeftModel.from_pretrained(base(1), str(peft_folder))
    model = lorica.adapt(base(0), lorica.Lora(r=2), target_modules=["q_proj", "v_proj"])
    move(model)
    lorica.save(model, tmp_path / "ours")
    with pytest.raises(BaseError, match="not the base that the adapter was trained on"):
        lorica.load(base(1), tmp_path / "ours")


def test_a_target_that_matches_nothing(caplog):
    targets = ["q_proj", "v_porj"]
    with silence(caplog):
        get_peft_model(base(0), LoraConfig(r=2, target_modules=targets))
    with pytest.raises(TargetError, match="v_porj"):
        lorica.adapt(base(0), lorica.Lora(r=2), target_modules=targets)


def test_tensors_under_other_names(peft_folder, caplog):
    weights = peft_folder / "adapter_model.safetensors"
    renamed = {key.replace("layers", "blocks"): t for key, t in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    model = get_peft_model(base(0), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with silence(caplog):
        model.load_adapter(str(peft_folder), adapter_name="other")
    with pytest.raises(LoricaError, match="blocks"):
        lorica.load(base(0), peft_folder)


def test_adalora_without_its_schedule(tmp_path, caplog):
    """Trained in a loop that never calls the allocator: no rank is ever pruned."""
    config = AdaLoraConfig(
        init_r=4, target_r=2, tinit=1, tfinal=1, total_step=8, target_modules=["q_proj"]
    )
    with silence(caplog):
        model = get_peft_model(base(0), config)
        move(model)
        model.save_pretrained(tmp_path / "peft")
    saved = load_file(tmp_path / "peft/adapter_model.safetensors")
    assert {t.shape[0] for key, t in saved.items() if key.endswith("lora_A")} == {4}
    adalora = lorica.method("adalora", r=4, target_r=2, tinit=1, tfinal=1)
    ours = lorica.adapt(base(0), adalora, target_modules=["q_proj"])
    move(ours)
    with pytest.raises(ConfigError, match="schedule of adalora was never driven"):
        lorica.save(ours, tmp_path / "ours")


def test_dora_in_a_batch_of_several_adapters():
    """PEFT refuses it by name; here each row gives what it gives alone."""
    config = LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "v_proj"])
    peft = get_peft_model(base(0), config).eval()
    with pytest.raises(ValueError, match="DoRA"):
        peft(IDS, adapter_names=["default", "__base__"])
    model = lorica.adapt(base(0), lorica.Dora(r=2), target_modules=["q_proj", "v_proj"])
    move(model)
    with lorica.use(model, "default"):
        adapted = model(IDS).logits
    with lorica.mixed(model, ["default", None]):
        rows = model(IDS).logits
    torch.testing.assert_close(rows[0], adapted[0], rtol=0, atol=1e-5)
    assert torch.equal(rows[1], base(0)(IDS).logits[1])
