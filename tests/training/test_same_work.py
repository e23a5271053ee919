"""Same work, same numbers: however the rows of a step are divided, laid out or recomputed."""

import pytest
import torch
from torch.nn import functional as F

import lorica
from lorica.base.load import load
from lorica.base.packing import packed, why_not_packed
from lorica.data.batch import pack
from lorica.data.tokenise import Example
from tests.training.rows import adapter, farthest, settings


def run(base, folder, **changed):
    result = lorica.train(**settings(base, folder, **changed), show=False)
    return adapter(result.folder)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_micro_batches_give_the_big_batch_update(stories, tmp_path, method):
    """Rows have different numbers of label tokens: a mean of means would show here.

    At the default learning rate. Adam turns the rounding of gradients that are all but zero
    into steps, so the difference grows with the rate: 1e-7 at 2e-4, 1e-4 at 5e-3.
    """
    changed = {"method": {"name": method}, "learning_rate": 2e-4}
    whole = run(stories, tmp_path / "a", **changed)
    for name, micro, steps in (("b", 4, 2), ("c", 1, 8)):
        parts = run(
            stories, tmp_path / name, micro_batch_size=micro, gradient_accumulation_steps=steps,
            **changed,
        )  # fmt: skip
        assert farthest(whole, parts) < 1e-6


def test_checkpointing_changes_nothing(stories, tmp_path):
    plain = run(stories, tmp_path / "a")
    assert farthest(plain, run(stories, tmp_path / "b", gradient_checkpointing=True)) < 1e-6


def test_padded_batches_give_the_packed_update(stories, tmp_path, monkeypatch):
    """An architecture that cannot carry packed rows gets padded ones, and the same adapter."""
    plain = run(stories, tmp_path / "a", learning_rate=2e-4)
    monkeypatch.setattr("lorica.training.prepare.why_not_packed", lambda model: "it was told so")
    config = settings(stories, tmp_path / "b", learning_rate=2e-4)
    result = lorica.train(**config, show=False)
    assert any("batches are padded: it was told so" in line for line in result.lines)
    assert farthest(plain, adapter(result.folder)) < 1e-5


def tiny(name: str) -> torch.nn.Module:
    import transformers

    torch.manual_seed(0)
    shape = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    grouped = {**shape, "num_key_value_heads": 2}
    kinds = {
        "Llama": grouped,
        "Mistral": {**grouped, "sliding_window": 4},
        "Qwen3": {**grouped, "head_dim": 8},
        "GPTNeoX": shape,
        "GPT2": {
            "vocab_size": 96,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    }
    config = getattr(transformers, f"{name}Config")(**kinds[name])
    return getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(
        config
    ).eval()


def examples(sizes: list[int]) -> list[Example]:
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(0, 96, (n,), generator=draw).tolist() for n in sizes]
    return [Example(i, [False] + [True] * (len(i) - 1), f"row {k}") for k, i in enumerate(ids)]


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3", "GPTNeoX", "GPT2"])
def test_rows_laid_end_to_end_give_what_each_gives_alone(name):
    """Losses and gradients, with rows longer than a sliding window."""
    model = lorica.adapt(tiny(name), lorica.Lora(r=2))
    assert why_not_packed(model) is None
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    rows = examples([3, 17, 1, 9])
    alone = []
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = model(ids).logits[0, :-1]
        loss = F.cross_entropy(logits, ids[0, 1:], reduction="sum")
        alone.append(loss.detach())
        loss.backward() if len(row.ids) > 1 else None
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    batch = pack(rows)
    with packed(model):
        logits = model(batch.input_ids, position_ids=batch.position_ids, row_lengths=batch.lengths,
                       use_cache=False).logits[0][batch.predict]  # fmt: skip
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        losses.sum().backward()
    by_row = torch.zeros(4).index_add(0, batch.row, losses.detach())
    torch.testing.assert_close(by_row, torch.stack(alone), atol=1e-5, rtol=1e-5)
    for n, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, grads[n], atol=1e-5, rtol=1e-4)


def test_a_state_space_model_is_not_packed():
    """Its state runs over the ends of rows: found by trying, and said."""
    import transformers

    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2)
    reason = why_not_packed(transformers.MambaForCausalLM(config).eval())
    assert reason is not None
    assert "Mamba" in reason


def test_the_attention_of_the_model_comes_back(stories):
    base = load(str(stories))
    before = base.model.config._attn_implementation
    with packed(base.model):
        assert base.model.config._attn_implementation != before
    assert base.model.config._attn_implementation == before


def test_bfloat16_base_keeps_float32_adapters(stories, tmp_path):
    tensors = run(stories, tmp_path, dtype="bfloat16")
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_lora_plus_moves_b_faster(stories, tmp_path):
    one = {"max_steps": 1, "optimizer": "sgd", "schedule": "constant", "warmup_ratio": 0,
           "max_grad_norm": 1e9, "learning_rate": 1e-3}  # fmt: skip
    plain = run(stories, tmp_path / "a", **one)
    plus = run(
        stories, tmp_path / "b", method={"name": "lora", "r": 4, "loraplus_lr_ratio": 4.0}, **one
    )
    for key in plain:
        if "lora_B" in key:  # B starts at zero: after one SGD step it is its rate times a gradient
            torch.testing.assert_close(plus[key], 4 * plain[key], rtol=1e-4, atol=1e-9)


def test_seed_decides_everything(stories, tmp_path):
    first = run(stories, tmp_path / "a", seed=1)
    torch.manual_seed(99)
    assert farthest(first, run(stories, tmp_path / "b", seed=1)) == 0
    assert farthest(first, run(stories, tmp_path / "c", seed=2)) > 1e-3
