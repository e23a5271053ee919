"""Broken bases and adapters; see tests/end_to_end/case.py."""

import torch

import tests.end_to_end.broken as do
from tests.end_to_end.broken import ADAPTER, QUERY, WEIGHTS
from tests.end_to_end.case import MEASURE, OTHER, TRAIN, WRITE, Case, train

BASES = [
    Case(
        "another base of the same shapes",
        do.perturbed,
        OTHER,
        2,
        ("not the base", "same shapes", "trained_on", "here", 'allow_base="same shapes"'),
    ),
    Case(
        "another base of the same shapes, meant",
        do.perturbed,
        f"{OTHER} --allow-base different",
        0,
        ("base: same shapes",),
    ),
    Case(
        "another base of other shapes",
        do.of_other_shapes,
        OTHER,
        2,
        ("not the base", "different", "30,112", "260,032", "fix"),
    ),
    Case(
        "another base of other shapes, meant",
        do.of_other_shapes,
        f"{OTHER} --allow-base different",
        6,
        ("fit", "adapter_model.safetensors"),
    ),
    Case(
        "a merge onto another base",
        do.perturbed,
        "merge run --base other --output merged",
        2,
        ("not the base", "same shapes", "fix"),
    ),
    Case(
        "a folder that is no model",
        do.remove("base/config.json"),
        TRAIN,
        2,
        ("base", "config.json", "is not a model folder", "fix"),
    ),
    Case("no folder", do.nothing, train(base="./bsae"), 2, ("no folder bsae", "closest", "fix")),
    Case(
        "pickled weights alone",
        do.no_weights_but_a_pickle,
        TRAIN,
        6,
        ("base", "no safetensors", "pickle", "convert"),
    ),
    Case(
        "weights cut short",
        do.cut("base/model.safetensors", -4000),
        TRAIN,
        6,
        ("base/model.safetensors is damaged", "fix"),
    ),
    Case(
        "weights without a tensor",
        do.tensors(lambda s: s.pop("model.norm.weight"), "base/model.safetensors"),
        TRAIN,
        6,
        ("the weights of base", "not complete", "missing", "model.norm.weight", "fix"),
    ),
    Case(
        "weights with a NaN",
        do.tensors(lambda s: s["model.norm.weight"].fill_(torch.nan), "base/model.safetensors"),
        TRAIN,
        1,
        ("not finite", "rows.jsonl:", "fix"),
        ("out",),
    ),
    Case(
        "a broken config", do.cut("base/config.json", 50), TRAIN, 6, ("base", "config.json", "fix")
    ),
    Case(
        "no tokenizer",
        do.remove("base/tokenizer.json", "base/tokenizer_config.json"),
        TRAIN,
        2,
        ("base", "tokenizer", "fix"),
    ),
]

ADAPTERS = [
    Case(
        "a tensor is missing",
        do.tensors(lambda s: s.pop(QUERY)),
        WRITE,
        6,
        (str(WEIGHTS), "missing", "layers.0.self_attn.q_proj.a"),
    ),
    Case(
        "a tensor too many",
        do.tensors(lambda s: s.update({"x.lora_A.weight": torch.ones(2, 64)})),
        WRITE,
        6,
        (str(WEIGHTS), "extra", "x"),
    ),
    Case(
        "a tensor of another shape",
        do.tensors(lambda s: s.update({QUERY: torch.ones(3, 64)})),
        WRITE,
        6,
        (str(WEIGHTS), "(3, 64) -> (2, 64)", "q_proj"),
    ),
    Case(
        "a tensor renamed",
        do.tensors(lambda s: s.update({QUERY.replace("q_proj", "p_proj"): s.pop(QUERY)})),
        WRITE,
        6,
        (str(WEIGHTS), "missing", "q_proj", "extra", "p_proj"),
    ),
    Case(
        "PEFT: a tensor is missing",
        do.of_peft(do.tensors(lambda s: s.pop(QUERY))),
        WRITE,
        6,
        (str(WEIGHTS), "q_proj"),
    ),
    Case(
        "PEFT: a tensor of another shape",
        do.of_peft(do.tensors(lambda s: s.update({QUERY: torch.ones(3, 64)}))),
        WRITE,
        6,
        (str(WEIGHTS), "(3, 64) -> (2, 64)"),
    ),
    Case(
        "a NaN",
        do.tensors(lambda s: s[QUERY][0].fill_(torch.nan)),
        WRITE,
        6,
        (str(WEIGHTS), "not_finite", "q_proj"),
    ),
    Case(
        "cut short",
        do.cut(WEIGHTS, -100),
        WRITE,
        6,
        ("run/adapter", "adapter_model.safetensors", "not what was saved", "fix"),
    ),
    Case(
        "PEFT: cut short",
        do.of_peft(do.cut(WEIGHTS, -100)),
        WRITE,
        6,
        (str(WEIGHTS), "damaged", "fix"),
    ),
    Case(
        "a changed byte",
        do.flipped,
        WRITE,
        6,
        ("adapter_model.safetensors", "not what was saved", "fix"),
    ),
    Case(
        "a changed byte, merged",
        do.flipped,
        "merge run --base base --output merged",
        6,
        ("adapter_model.safetensors", "not what was saved", "fix"),
    ),
    Case(
        "a pickle alone",
        lambda patch, other: WEIGHTS.rename(ADAPTER / "adapter_model.bin"),
        WRITE,
        6,
        ("adapter_model.bin", "pickle", "convert", "python -c"),
    ),
    Case(
        "an empty folder",
        do.remove(*(ADAPTER / n for n in ("adapter_config.json", "manifest.json", WEIGHTS.name))),
        WRITE,
        6,
        ("run/adapter", "not an adapter folder", "needed", "fix"),
    ),
    Case(
        "no such adapter",
        do.nothing,
        "generate runn --prompt Once",
        2,
        ("runn", "not a folder here", "fix"),
    ),
    Case(
        "a manifest cut short",
        do.cut(ADAPTER / "manifest.json", 300),
        WRITE,
        6,
        ("run/adapter/manifest.json", "fix"),
    ),
    Case(
        "no manifest",
        do.of_peft(do.nothing),
        WRITE,
        0,
        ("run/adapter has no manifest.json", "cannot be verified"),
    ),
    Case(
        "an adapter that does nothing",
        do.tensors(do.does_nothing),
        MEASURE,
        1,
        ("the adapter does nothing", "fix"),
    ),
    Case(
        "a run without an adapter",
        do.nothing,
        "generate stopped --prompt Once",
        6,
        ("stopped", "has not finished", "lorica train --resume stopped"),
    ),
    Case(
        "a prompt longer than the context",
        do.nothing,
        WRITE.replace("Once", "na" * 700),
        3,
        ("context is 512 tokens", "prompt", "fix"),
    ),
    Case(
        "a chat without a template", do.nothing, f"{WRITE} --chat", 3, ("no chat template", "fix")
    ),
    Case(
        "an output that is there",
        do.nothing,
        "merge run --base base --output base",
        4,
        ("base", "there already", "fix"),
    ),
]
