"""An adapted model goes on working with transformers' own machinery."""

import copy

import pytest
import torch

import lorica
from lorica.core.adapter import Method
from lorica.core.state import adapter_state
from tests.laws.bases import CASES, IDS, bits, compiled, move, same_bits, small_llama, trained
from tests.marks import at_length

STILL = ".gates"  # of blora: saturated at the start, and moved by its schedule's penalty alone
QUICK = ("dora", "full", "llama_adapter", "prompt_tuning")
each = pytest.mark.parametrize("name", Method.names())
COMPILED = ["lora", "dora", "adalora", "hyperlora", "llama_adapter", "prefix_tuning"]
"""The laws compile each method on linear layers; `make test-full` compiles each in a model."""
quick_methods = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in Method.names()]
)
pytestmark = pytest.mark.filterwarnings(  # newer transformers call it activation checkpointing
    "ignore:.*gradient_checkpointing.*:FutureWarning"
)


def llama(name: str) -> torch.nn.Module:
    return trained(name, next(case for case in CASES if case.name == "llama"))


@quick_methods
def test_generate(name):
    """With the key-value cache, greedy generation is the argmax of whole forward passes."""
    model, ids = llama(name), IDS[:1]
    model.generation_config.eos_token_id = None  # all of the eight tokens are wanted
    with torch.no_grad():
        want = ids
        for _ in range(8):
            want = torch.cat([want, model(want).logits[:, -1:].argmax(-1)], 1)
        greedy = {
            "max_new_tokens": 8,
            "do_sample": False,
            "use_cache": True,
            "pad_token_id": 0,
            "attention_mask": torch.ones_like(ids),
        }
        got = model.generate(ids, **greedy)
        with lorica.use(model):
            base = model.generate(ids, **greedy)
        bare = small_llama()
        bare.generation_config.eos_token_id = None
        assert base.tolist() == bare.generate(ids, **greedy).tolist()
    assert got.tolist() == want.tolist()
    assert not torch.allclose(model(ids).logits, small_llama()(ids).logits, atol=1e-4)


@quick_methods
def test_trainer(name, tmp_path, monkeypatch):
    from transformers import Trainer, TrainingArguments

    monkeypatch.setenv("WANDB_DISABLED", "true")
    model = llama(name)
    before = bits(model)
    start = {k: t.detach().clone() for k, t in adapter_state(model).items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-2,
        logging_steps=1,
        dataloader_pin_memory=False,
        gradient_checkpointing=True,
    )
    rows = [{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(8)]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert same_bits(before, bits(model))
    learned = {k for k, t in adapter_state(model).items() if t.requires_grad}
    assert learned
    moved = {k for k in learned if not torch.equal(adapter_state(model)[k], start[k])}
    assert moved == {k for k in learned if not k.endswith(STILL)}


@pytest.mark.parametrize("name", compiled(at_length(None, COMPILED), quick=("prefix_tuning",)))
def test_compile(name):
    torch._dynamo.reset()
    model = llama(name)
    model.model.layers = model.model.layers[:1]  # the others would be compiled just the same
    with torch.no_grad():
        want = model(IDS).logits
        got = torch.compile(model, backend="aot_eager")(IDS).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@each
def test_deepcopy(name):
    model = llama(name)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(IDS).logits, model(IDS).logits)
    move(copied, 5)
    assert not torch.equal(copied(IDS).logits, model(IDS).logits)
    lorica.detach(copied)
    assert torch.equal(copied(IDS).logits, small_llama()(IDS).logits)


@quick_methods
def test_gradient_checkpointing(name):
    grads = []
    for checkpointed in (False, True):
        model = llama(name).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(g is not None for g in grads[1].values())
    for key in grads[0]:
        torch.testing.assert_close(grads[0][key], grads[1][key])


@each
def test_autocast(name):
    model, plain = llama(name), small_llama()
    with torch.autocast("cpu", torch.bfloat16):
        got, base = model(IDS).logits, plain(IDS).logits
        got.float().sum().backward()
    assert got.dtype == base.dtype
    # The mean: rounding may turn a quantised number of B-LoRA over, which moves single logits.
    rounding = (base - plain(IDS).logits).abs().mean()
    assert (got - model(IDS).logits).abs().mean() < 10 * rounding
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.grad.dtype for p in learned.values() if p.grad is not None} == {torch.float32}
    assert all(p.grad is not None for n, p in learned.items() if not n.endswith(STILL))


def test_a_base_loaded_in_bfloat16_trains_a_float32_adapter():
    from lorica.base.load import load

    model = lorica.adapt(load("bundled", dtype="bfloat16").model, lorica.Lora())
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {t.dtype for t in adapter_state(model).values()} == {torch.float32}
    assert model.model.norm.weight.dtype == torch.bfloat16
