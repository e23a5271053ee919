"""Same work, same numbers: however the rows of a step are divided, laid out or recomputed."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import lorica
from lorica.base.load import load
from lorica.base.packing import packed, why_not_packed, why_not_shared
from lorica.data.batch import pack
from lorica.data.example import Example
from lorica.training.objective import Objective
from lorica.training.placement import Single
from lorica.training.step import StepInput, Stepper
from tests.laws.bases import move
from tests.training.rows import ROUNDING, adapter, farthest, settings


def run(base, folder, **changed):
    result = lorica.train(**settings(base, folder, **changed), show=False)
    return adapter(result.folder)


@pytest.mark.parametrize("name", ["Llama", "GPTNeoX"])
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_micro_batches_give_the_big_batch_gradients(name, method):
    """In float64, of rows that share beginnings wherever they meet in a micro-batch."""
    model: Any = move(lorica.adapt(tiny(name), lorica.method(method))).double()
    exact(model)
    tensors = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients, losses = [], []
    for micro in (10, 4, 1):
        stepper = Stepper(Single(torch.device("cpu")), model, packed=True, shared=True, pad_id=0)
        with packed(model):
            losses.append(stepper([StepInput(alike(), micro, tensors)])[0].loss)
        gradients.append([p.grad for p in tensors.values()])
        model.zero_grad()
    assert max(losses) - min(losses) < 1e-6 * losses[0]
    for other in gradients[1:]:
        for got, want in zip(other, gradients[0], strict=True):
            torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("dora", "full"))]
)
def test_micro_batches_give_the_big_batch_update(small_base, tmp_path, method):
    """Rows have different numbers of label tokens: a mean of means would show here."""
    changed = {"method": {"name": method}, "learning_rate": 2e-4}
    whole = run(small_base, tmp_path / "a", **changed)
    for name, micro, steps in (("b", 4, 2), ("c", 1, 8)):
        parts = run(
            small_base,
            tmp_path / name,
            micro_batch_size=micro,
            gradient_accumulation_steps=steps,
            **changed,
        )
        assert farthest(whole, parts) < ROUNDING


@pytest.mark.slow
def test_checkpointing_changes_nothing(small_base, tmp_path):
    plain = run(small_base, tmp_path / "a")
    assert farthest(plain, run(small_base, tmp_path / "b", gradient_checkpointing=True)) < 1e-6


def test_padded_batches_give_the_packed_update(small_base, tmp_path, monkeypatch):
    """An architecture that cannot carry packed rows gets padded ones, and the same adapter."""
    plain = run(small_base, tmp_path / "a", learning_rate=2e-4)
    monkeypatch.setattr("lorica.base.packing.why_not_packed", lambda model: "not for this test")
    config = settings(small_base, tmp_path / "b", learning_rate=2e-4)
    result = lorica.train(**config, show=False)
    assert any("batches are padded: not for this test" in line for line in result.notices)
    assert farthest(plain, adapter(result.folder)) < ROUNDING


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
def test_a_packed_row_gives_what_it_gives_alone(name):
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
        logits = model(
            batch.input_ids,
            position_ids=batch.position_ids,
            row_lengths=batch.lengths,
            use_cache=False,
        ).logits[0][batch.label_positions]
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        losses.sum().backward()
    by_row = torch.zeros(4).index_add(0, batch.label_rows, losses.detach())
    torch.testing.assert_close(by_row, torch.stack(alone), atol=1e-5, rtol=1e-5)
    for n, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, grads[n], atol=1e-5, rtol=1e-4)


BEGINNINGS = ([5] * 9, list(range(10, 22)), [*range(10, 22), 7, 7, 7, 8, 8, 8, 9, 9, 9])


def exact(model: torch.nn.Module) -> None:
    """Norms in the model's own dtype: transformers' take their root in float32. In place."""
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = partial(rms_norm, module)


def rms_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def alike() -> list[Example]:
    """Rows that begin alike in two ways, one as the long form of the other; and one twice."""
    draw = torch.Generator().manual_seed(3)
    rows = [
        [*begin, *torch.randint(0, 96, (n,), generator=draw).tolist()]
        for n, begin in enumerate([*BEGINNINGS, *BEGINNINGS, *BEGINNINGS], 1)
    ]
    rows.append(rows[4])
    return [
        Example(ids, [False] + [True] * (len(ids) - 1), f"row {k}") for k, ids in enumerate(rows)
    ]


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        "dora",
        "llama_adapter",
        "prefix_tuning",
        "prompt_tuning",
        "bottleneck",
        "full",
    ],
)
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3", "GPTNeoX", "GPT2"])
def test_shared_prefixes_change_nothing(name, method):
    """Loss and gradients in float64, with beginnings longer than a sliding window."""
    model = move(lorica.adapt(tiny(name), lorica.method(method))).double()
    exact(model)
    assert why_not_shared(model) is None or name == "GPT2"  # has dropout, when it trains
    gradients, rows = [], alike()
    for share in (False, True):
        batch = pack(rows, share_prefixes=share)
        assert batch.tokens == sum(len(row.ids) for row in rows)
        assert (batch.input_ids.numel() < batch.tokens) == share
        objective = Objective(model, packed=True)
        with packed(model):
            loss = objective(batch)
            loss.backward()
        gradients.append([loss.detach()] + [p.grad for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-9)


def test_a_run_with_shared_prefixes_gives_the_same_adapter_and_a_notice(small_base, tmp_path):
    changed = {"learning_rate": 2e-4, "gradient_accumulation_steps": 1}
    rows = [
        {"prompt": "Below is a task that you do. " + word, "completion": f" the {word} ran"}
        for word in ("cat", "dog", "bird", "fish") * 3
    ]
    (tmp_path / "alike.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(tmp_path / "alike.jsonl"), "validation": 0}
    once = lorica.train(**settings(small_base, tmp_path / "a", data=data, **changed), show=False)
    assert any("shared prefixes are computed once" in line for line in once.notices)
    each = lorica.train(
        **settings(
            small_base,
            tmp_path / "b",
            data=data,
            **{**changed, "micro_batch_size": 1, "gradient_accumulation_steps": 8},
        ),
        show=False,
    )
    assert not any("shared prefixes are computed once" in line for line in each.notices)
    assert farthest(adapter(once.folder), adapter(each.folder)) < ROUNDING


def test_a_context_too_short_for_the_probe_shares_no_prefix():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=13)
    assert "refuses it" in (why_not_shared(GPT2LMHeadModel(config)) or "")


def test_rows_with_dropout_share_no_prefix(small_base, tmp_path):
    model = tiny("GPT2")
    assert "dropout" in (why_not_shared(model) or "")
    assert not model.training
    method = {"name": "lora", "r": 4, "dropout": 0.1}
    data = tmp_path / "rows.jsonl"
    data.write_text((json.dumps({"text": "Once there was a cat that ran far away."}) + "\n") * 9)
    changed = {"method": method, "data": {"path": str(data), "validation": 0}}
    done = lorica.train(**settings(small_base, tmp_path / "a", **changed), show=False)
    assert not any("shared prefixes are computed once" in line for line in done.notices)


def test_a_state_space_model_is_not_packed():
    """Its state runs over the ends of rows: gradients by trying, and said."""
    import transformers

    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2)
    reason = why_not_packed(transformers.MambaForCausalLM(config).eval())
    assert reason is not None
    assert "Mamba" in reason


def test_the_attention_of_the_model_comes_back(small_base):
    base = load(str(small_base))
    before = base.model.config._attn_implementation
    with packed(base.model):
        assert base.model.config._attn_implementation != before
    assert base.model.config._attn_implementation == before


def test_bfloat16_base_keeps_float32_adapters(small_base, tmp_path):
    tensors = run(small_base, tmp_path, dtype="bfloat16")
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_lora_plus_moves_b_faster(small_base, tmp_path):
    options = {
        "max_steps": 1,
        "optimizer": "sgd",
        "schedule": "constant",
        "warmup_ratio": 0,
        "max_grad_norm": 1e9,
        "learning_rate": 1e-3,
    }
    plain = run(small_base, tmp_path / "a", **options)
    plus = run(
        small_base,
        tmp_path / "b",
        method={"name": "lora", "r": 4, "loraplus_lr_ratio": 4.0},
        **options,
    )
    for key in plain:
        if "lora_B" in key:  # B starts at zero: after one SGD step it is its rate times a gradient
            torch.testing.assert_close(plus[key], 4 * plain[key], rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_seed_decides_everything(small_base, tmp_path):
    first = run(small_base, tmp_path / "a", seed=1)
    torch.manual_seed(99)
    assert farthest(first, run(small_base, tmp_path / "b", seed=1)) == 0
    assert farthest(first, run(small_base, tmp_path / "c", seed=2)) > 1e-3
