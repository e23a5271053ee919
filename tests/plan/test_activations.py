"""What a forward pass keeps, compared with the tensors that torch saves."""

import json

import pytest
import torch

import lorica
from lorica.base.packing import packed
from lorica.core.state import adapter_state
from lorica.data.example import Example
from lorica.plan.activations import kept
from lorica.plan.shapes import read_shapes
from lorica.plan.tokens import MicroBatch
from lorica.recipe.catalogue import method as catalogued
from lorica.recipe.catalogue import methods
from lorica.training.placement import Single
from lorica.training.settings import TrainSettings
from lorica.training.step import StepInput, Stepper

CONFIG = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 104,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}
LENGTHS, LABELS = (90, 40, 75, 120, 60), 30


def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = {key: value for key, value in CONFIG.items() if key != "model_type"}
    return LlamaForCausalLM(LlamaConfig(**config)).requires_grad_(False).train()


def saved_bytes(base, learned, examples) -> float:
    """Bytes of the tensors that a step saves, each storage once, without those of the model."""
    own = {t.untyped_storage().data_ptr() for t in (*base.parameters(), *base.buffers())}
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held: no other can take its place
        return tensor

    stepper = Stepper(Single(torch.device("cpu")), base, packed=True, shared=False, pad_id=0)
    with packed(base), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        stepper([StepInput(examples, len(examples), learned)])
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(methods().keys() - {""}))
def test_kept_elements_are_those_that_torch_saves(tmp_path, name, dtype):
    if dtype == "bfloat16" and name not in ("lora", "full", "bottleneck"):
        pytest.skip("the methods differ in what they keep, not in its dtype")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    base = model().to(getattr(torch, dtype))
    conditions = ["north", "south"] if name == "hyperlora" else None
    settings = {option.name: option.value for option in catalogued(name).options}
    method = lorica.method(name)
    if conditions:
        method = method.for_conditions(conditions, CONFIG["hidden_size"])
    lorica.adapt(base, method)
    learned = {k: t for k, t in adapter_state(base).items() if t.requires_grad}
    examples = [
        Example(
            [(7 * i + n) % 60 + 3 for i in range(n)],
            [i >= n - LABELS for i in range(n)],
            "row",
            **({"condition": conditions[n % 2]} if conditions else {}),
        )
        for n in LENGTHS
    ]
    tokens, labels = sum(LENGTHS), LABELS * len(LENGTHS)
    batch = MicroBatch(len(LENGTHS), tokens, labels, max(LENGTHS), tokens)
    config = TrainSettings(data={"path": "x"}, method={"name": name, **settings}, dtype=dtype)
    predicted = kept(read_shapes(str(tmp_path)), config.method, config, batch, 2)
    size = 4 if dtype == "float32" else 2
    real = saved_bytes(base, learned, examples) / size
    if name == "full" and size == 2:  # weights cast for the pass count as the adapter's
        real -= sum(tensor.numel() for tensor in learned.values())
    assert predicted == pytest.approx(real, rel=0.08 if name == "llama_adapter" else 0.05)
