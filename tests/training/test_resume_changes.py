"""What may change before a run goes on, and what may not: the same bytes, or refused by name.

Each change of the table is made to a run that was interrupted at step 5 of 6.
"""

import re
import shutil
from dataclasses import replace

import pytest
import torch

import lorica
from lorica.errors import LoricaError
from tests.training.rows import adapter, same
from tests.training.run_edits import (
    Change,
    append,
    config,
    edited_copy,
    files,
    moments,
    move_base,
    move_data,
    nothing,
    of_checkpoint,
    of_json,
    one_bit,
    rename_data,
    rows,
    setting,
    state,
    swap_ids,
    tokenizer,
    weights,
    zero_where_no_hash_looks,
)

ROPE = {"rope_theta": 20000.0, "rope_type": "default"}
UP = "model.layers.1.mlp.up_proj.weight"
CHANGES: dict[str, Change] = {
    "nothing": Change(nothing, None),
    # what the base computes
    "rope_theta": Change(config(rope_parameters=ROPE), "rope_theta 10000.0 -> 20000.0"),
    "eps": Change(config(rms_norm_eps=1e-5), "rms_norm_eps"),
    "activation": Change(config(hidden_act="gelu"), "hidden_act silu -> gelu"),
    "heads": Change(config(num_attention_heads=8, num_key_value_heads=4, head_dim=4), "heads"),
    "key heads": Change(config(num_key_value_heads=4), "."),
    "a layer less": Change(config(num_hidden_layers=1), "."),
    "positions": Change(config(max_position_embeddings=512), "max_position_embeddings"),
    "dropout of the base": Change(config(attention_dropout=0.5), "attention_dropout 0.0 -> 0.5"),
    "a bias more": Change(config(mlp_bias=True), "."),
    "rope type": Change(
        config(rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}),
        "rope_parameters",
    ),
    "a field that nobody knows": Change(config(secret_scale=2.0), "secret_scale"),
    "use_cache": Change(config(use_cache=False), None),
    "dtype of the config": Change(config(dtype="bfloat16"), None),
    "architectures": Change(config(architectures=["Other"]), None),
    "eos in the config": Change(config(eos_token_id=5), None),
    "name": Change(config(_name_or_path="elsewhere"), None),
    "start of weights": Change(config(initializer_range=0.5), None),
    "generation settings": Change(
        of_json("base/generation_config.json", lambda value: value.update(temperature=0.3)), None
    ),
    # its weights
    "hollow weights": Change(weights(zero_where_no_hash_looks), "other_weights"),
    "one bit of a layer": Change(one_bit(UP), re.escape(UP)),
    "one bit of a norm": Change(one_bit("model.norm.weight"), "model.norm.weight"),
    "one bit of the embedding": Change(one_bit("model.embed_tokens.weight"), "embed_tokens"),
    "one bit of the head": Change(one_bit("lm_head.weight"), "lm_head"),
    "a layer negated": Change(weights(lambda t: t[UP].neg_()), re.escape(UP)),
    "two rows swapped": Change(
        weights(lambda t: t[UP].__setitem__([0, 1], t[UP][[1, 0]].clone())), re.escape(UP)
    ),
    "two layers swapped": Change(
        weights(lambda t: t.update({UP: t[UP.replace("up", "gate")].clone()})), re.escape(UP)
    ),
    "a tensor missing": Change(weights(lambda t: t.pop(UP)), "up_proj"),
    # its tokenizer
    "ids swapped": Change(tokenizer(swap_ids), "other_tokenizer .*model"),
    "a merge less": Change(tokenizer(lambda s: s["model"]["merges"].pop()), "other_tokenizer"),
    "normalizer": Change(
        tokenizer(lambda s: s.update(normalizer={"type": "Lowercase"})), "other_tokenizer"
    ),
    "pre-tokenizer": Change(
        tokenizer(lambda s: s.update(pre_tokenizer={"type": "Whitespace"})), "other_tokenizer"
    ),
    "decoder": Change(tokenizer(lambda s: s.update(decoder=None)), "other_tokenizer"),
    "another eos": Change(
        of_json("base/tokenizer_config.json", lambda s: s.update(eos_token="<|end|>")), "."
    ),
    "chat template": Change(
        lambda root: (root / "base" / "chat_template.jinja").write_text("{{ messages }}") and None,
        "other_chat_template",
    ),
    # the rows
    "a row more": Change(rows(lambda r: [*r, r[0]]), "the rows are not those"),
    "a row less": Change(rows(lambda r: r[:-1]), "the rows are not those"),
    "rows in another order": Change(rows(lambda r: r[::-1]), "the rows are not those"),
    "a word": Change(rows(lambda r: [r[0].replace("the", "a"), *r[1:]]), "the rows are not those"),
    "no rows": Change(lambda root: (root / "rows.jsonl").unlink(), "rows.jsonl"),
    "rows elsewhere": Change(move_data, None),
    "rows of another kind of file": Change(rename_data, "data.path"),
    "base elsewhere": Change(move_base, None),
    # settings that reach the adapter
    **{
        f"setting {key}": Change(setting(key, value), re.escape(key))
        for key, value in {
            "learning_rate": "0.004",
            "seed": "1",
            "micro_batch_size": "4",
            "method.alpha": "3.0",
            "method.r": "2",
            "method.init": "gaussian",
            "method.dropout": "0.1",
            "method.use_rslora": "true",
            "optimizer": "sgd",
            "schedule": "linear",
            "weight_decay": "0.1",
            "warmup_steps": "2",
            "max_grad_norm": "0.5",
            "gradient_accumulation_steps": "2",
            "dtype": "bfloat16",
            "quantisation": "nf4",
            "gradient_checkpointing": "true",
            "data.completion_only": "false",
            "data.limit": "20",
            "data.validation": "0.3",
            "data.max_length": "40",
            "data.overlong": "truncate",
            "target_modules": "[q_proj]",
            "layers_to_transform": "[0]",
            "exclude_modules": "[up_proj]",
            "early_stopping_patience": "1",
            "modules_to_save": "[norm]",
            "trainable_token_indices": "[5]",
        }.items()
    },
    # settings that do not
    **{
        f"setting {key}": Change(setting(key, value), None)
        for key, value in {
            "save_steps": "1",
            "keep_checkpoints": "1",
            "eval_steps": "1",
            "loss_limit": "50.0",
        }.items()
    },
    "fewer steps than done": Change(setting("max_steps", "3"), "end after 3 steps, and has done 4"),
    "no such setting": Change(append("run/config.yaml", "nothing: 1\n"), "nothing"),
    "no config": Change(lambda root: (root / "run/config.yaml").unlink(), "config.yaml"),
    # the checkpoint's state
    **{
        f"state {keys[-1]}": Change(state(*keys, value=value), r"damaged|edited")
        for keys, value in {
            ("progress", "step"): 3,
            ("progress", "rows"): 8,
            ("progress", "best_loss"): 0.1,
            ("progress", "smooth"): 1.0,
            ("progress", "tokens"): 1,
            ("progress", "waited"): 3,
            ("origin", "data"): "0" * 64,
            ("origin", "total"): 9,
            ("origin", "processes"): 2,
            ("origin", "settings", "seed"): 1,
            ("origin", "base", "shapes"): "x",
            ("files",): {},
            ("format",): 1,
            ("digest",): "0" * 64,
        }.items()
    },
    "state of an earlier version": Change(
        of_json("run/checkpoints/step-00000004/state.json", lambda s: s.pop("format")), "format 1"
    ),
    "state renamed": Change(files(lambda f: f.rename(f.with_name("step-00000009"))), "saved as"),
    "state gone": Change(files(lambda f: (f / "state.json").unlink()), "state.json"),
    "checkpoint gone": Change(files(shutil.rmtree), None),  # on from the one before it
    "every checkpoint gone": Change(files(lambda f: shutil.rmtree(f.parent)), None),
    "a file more": Change(
        files(lambda f: shutil.copy(f / "adapter.safetensors", f / "best.safetensors")), "best"
    ),
    **{
        f"{name} gone": Change(files(lambda f, name=name: (f / name).unlink()), re.escape(name))
        for name in ("adapter.safetensors", "optimizer.safetensors", "schedule.safetensors")
    },
    **{
        f"{name} edited": Change(
            weights(
                lambda t: next(iter(t.values())).add_(1),
                f"run/checkpoints/step-00000004/{name}",
            ),
            re.escape(name),
        )
        for name in ("adapter.safetensors", "optimizer.safetensors", "schedule.safetensors")
    },
    # tensors of another kind under digests that fit them
    "a moment missing": Change(moments(lambda t: None, "exp_avg"), "has step, exp_avg_sq of"),
    "a moment too small": Change(moments(lambda t: t[:1].clone(), "exp_avg"), "exp_avg"),
    "a moment too large": Change(moments(lambda t: torch.cat([t, t]), "exp_avg_sq"), "exp_avg_sq"),
    "a moment in bfloat16": Change(moments(lambda t: t.bfloat16(), "exp_avg"), "bfloat16"),
    "a moment with a NaN": Change(moments(lambda t: t * float("nan"), "exp_avg"), "not finite"),
    "a square below 0": Change(moments(lambda t: t - 1, "exp_avg_sq"), "below 0"),
    "a step of another shape": Change(moments(lambda t: t.expand(3).clone(), "/step"), "steps"),
    "a step too many": Change(moments(lambda t: t + 5, "/step"), "steps up to 4"),
    "no moments": Change(of_checkpoint(optimizer=lambda state: {}), "has none of"),
    "moments of another tensor": Change(
        of_checkpoint(optimizer=lambda s: {f"x.{k}": t for k, t in s.items()}), "no such tensor"
    ),
    "an unknown moment": Change(
        of_checkpoint(optimizer=lambda s: {**s, **{f"{k}_x": t.clone() for k, t in s.items()}}),
        "no such moment",
    ),
    "adapter of another shape": Change(
        of_checkpoint(adapter=lambda s: {k: t[:1].clone() for k, t in s.items()}), "shapes"
    ),
    "adapter with a NaN": Change(
        of_checkpoint(adapter=lambda s: {k: t * float("nan") for k, t in s.items()}), "not_finite"
    ),
    "schedule of another step": Change(
        of_checkpoint(schedule=lambda s: {"step": torch.tensor(2)}), "step: 2, not 4"
    ),
    "schedule of another kind": Change(
        of_checkpoint(schedule=lambda s: {**s, "x": torch.ones(2)}), "x: unknown"
    ),
    "schedule without its step": Change(of_checkpoint(schedule=lambda s: {}), "lacks"),
    "more rows than steps": Change(
        of_checkpoint(progress=lambda p: replace(p, rows=99)), "has seen 99 rows"
    ),
    "other processes": Change(
        of_checkpoint(origin=lambda o: replace(o, processes=2)), "has seen .* rows, and not"
    ),
    # what is written beside it
    "no events": Change(lambda root: (root / "run/events.jsonl").unlink(), None),
}
QUICK = (
    "nothing",
    "rope_theta",
    "hollow weights",
    "ids swapped",
    "setting learning_rate",
    "a moment too small",
    "state best_loss",
    "rows elsewhere",
)


def test_the_table_is_as_long_as_it_says():
    assert len(CHANGES) >= 110


@pytest.mark.parametrize(
    "name", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CHANGES]
)
def test_the_same_bytes_or_refused_by_name(cut, tmp_path, name):
    root, want = cut
    change = CHANGES[name]
    run = edited_copy(root, tmp_path / "copy", change.edit)
    if change.names is None:
        assert same(adapter(lorica.train(resume=run, show=False).folder), want)
        return
    with pytest.raises(LoricaError, match=change.names):
        lorica.train(resume=run, show=False)
    assert not (run / "adapter").exists()
