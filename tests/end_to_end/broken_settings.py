"""Broken settings, and places that cannot be written; see tests/end_to_end/case.py."""

import errno

import tests.end_to_end.broken as do
from tests.end_to_end.broken_rows import PLAIN
from tests.end_to_end.case import TRAIN, Case, recipe, train

SETTINGS = [
    Case(
        "a misspelt target",
        do.nothing,
        f"{TRAIN} --target_modules q_pro",
        2,
        ("'q_pro'", "closest", "q_proj"),
    ),
    Case(
        "an exclusion of nothing",
        do.nothing,
        f"{TRAIN} --exclude_modules lm_haed",
        2,
        ("'lm_haed'", "exclude_modules", "closest"),
    ),
    Case(
        "a layer out of range",
        do.nothing,
        f"{TRAIN} --layers_to_transform 0,9",
        2,
        ("9", "layers_to_transform", "0"),
    ),
    Case(
        "a rank pattern of nothing",
        do.nothing,
        f"{TRAIN} --rank_pattern.q_pro 4",
        2,
        ("q_pro", "rank_pattern"),
    ),
    Case(
        "an alpha pattern of nothing",
        do.nothing,
        f"{TRAIN} --alpha_pattern.q_pro 4",
        2,
        ("q_pro", "alpha_pattern"),
    ),
    Case(
        "a module to save that is not there",
        do.nothing,
        f"{TRAIN} --modules_to_save lm_haed",
        2,
        ("lm_haed", "modules_to_save"),
    ),
    Case(
        "a token beyond the vocabulary",
        do.nothing,
        f"{TRAIN} --trainable_token_indices 512",
        2,
        ("512", "trainable_token_indices"),
    ),
    Case(
        "an unknown key",
        recipe("learning_rat: 1\n"),
        "train job.yaml",
        2,
        ("job.yaml:3", "learning_rat ", "closest learning_rate", "fix"),
    ),
    Case(
        "an unknown flag",
        do.nothing,
        f"{TRAIN} --lerning_rate 1",
        2,
        ("--lerning_rate", "closest --learning_rate", "fix"),
    ),
    Case(
        "an unknown method", do.nothing, f"{TRAIN} --method lorra", 2, ("'lorra'", "closest lora")
    ),
    Case(
        "an unknown setting of a method",
        do.nothing,
        f"{TRAIN} --method.alhpa 3",
        2,
        ("--method.alhpa", "closest --method.alpha"),
    ),
    Case(
        "rank 0",
        recipe("method: {r: 0}\n"),
        "train job.yaml",
        2,
        ("job.yaml:3", "method.r is 0", "at least 1"),
    ),
    Case(
        "dropout above 1",
        recipe("method:\n  dropout: 1.5\n"),
        "train job.yaml",
        2,
        ("job.yaml:4", "method.dropout is 1.5", "below 1"),
    ),
    Case(
        "steps and epochs",
        do.nothing,
        f"{TRAIN} --epochs 1",
        2,
        ("epochs is 1.0", "max_steps 2", "give one"),
    ),
    Case(
        "bad YAML", recipe("method: {r: 2\n"), "train job.yaml", 2, ("job.yaml:", "not YAML", "fix")
    ),
    Case(
        "a key twice",
        recipe("seed: 1\nseed: 2\n"),
        "train job.yaml",
        2,
        ("job.yaml:4", "seed is set twice", "job.yaml:3"),
    ),
    Case(
        "no recipe", recipe(""), "train jbo.yaml", 2, ("no recipe jbo.yaml", "closest", "job.yaml")
    ),
    Case(
        "a number that is none",
        do.nothing,
        f"{TRAIN} --learning_rate nan",
        2,
        ("--learning_rate is", "a number", "fix"),
    ),
    Case(
        "a package that is not installed",
        do.without_wandb,
        f"{TRAIN} --report_to wandb",
        5,
        ("report_to wandb", "not installed", 'pip install "lorica[wandb]"'),
    ),
    Case("an unknown command", do.nothing, "tarin job.yaml", 2, ("tarin", "closest  train")),
]

PLACES = [
    Case(
        "a full disk",
        do.disk(errno.ENOSPC),
        TRAIN,
        4,
        ("out", "No space left", "free some space"),
        ("out",),
    ),
    Case(
        "a full disk later",
        do.disk(errno.ENOSPC, after=3),
        f"{TRAIN} --save_steps 1",
        4,
        ("No space left", "free some space"),
        ("out",),
    ),
    Case(
        "a disk that turns read-only",
        do.disk(errno.EROFS),
        TRAIN,
        4,
        ("out", "Read-only", "choose a folder"),
        ("out",),
    ),
    Case(
        "a merge below a file",
        do.nothing,
        "merge run --base base --output rows.jsonl/merged",
        4,
        ("rows.jsonl/merged", "fix"),
    ),
    Case(
        "a folder below a file",
        do.nothing,
        train(output="rows.jsonl/out"),
        4,
        ("rows.jsonl/out", "Not a directory", "fix"),
    ),
    Case(
        "the same run twice",
        do.nothing,
        train(output="run"),
        2,
        ("run exists", "not overwritten", "lorica train --resume run"),
    ),
    Case(
        "an output of something else",
        do.nothing,
        train(output="base"),
        2,
        ("base exists", "not overwritten", "choose another output"),
    ),
    Case(
        "resume of no run",
        do.nothing,
        "train --resume nowhere",
        2,
        ("nowhere", "no run folder", "fix"),
    ),
    Case(
        "resume with other settings",
        do.nothing,
        "train --resume stopped --seed 3",
        2,
        ("keeps its settings", "seed", "lorica train --resume stopped"),
    ),
    Case(
        "resume of a damaged checkpoint",
        do.cut(do.newest("optimizer.safetensors"), -8),
        "train --resume stopped",
        6,
        ("the checkpoint stopped/checkpoints/step-00000004 is damaged", "why", "delete"),
    ),
    Case(
        "resume of a checkpoint cut to nothing",
        do.cut(do.newest("state.json"), 0),
        "train --resume stopped",
        6,
        ("step-00000004", "state.json", "delete"),
    ),
    Case(
        "resume of a checkpoint without a file",
        do.remove(do.newest("adapter.safetensors")),
        "train --resume stopped",
        6,
        ("step-00000004", "adapter.safetensors", "delete"),
    ),
    Case(
        "resume on other rows",
        do.write("rows.jsonl", [PLAIN] * 24),
        "train --resume stopped",
        3,
        ("rows are not those", "stopped", "fix"),
    ),
    Case(
        "resume without its rows",
        do.remove("rows.jsonl"),
        "train --resume stopped",
        3,
        ("no file rows.jsonl", "fix"),
    ),
    Case(
        "resume on another base",
        do.tensors(lambda s: [t.mul_(1.01) for t in s.values()], "base/model.safetensors"),
        "train --resume stopped",
        2,
        ("base", "the base is not the one that stopped", "stopped", "fix"),
    ),
    Case(
        "resume without its base",
        do.remove("base/model.safetensors"),
        "train --resume stopped",
        6,
        ("base", "safetensors", "fix"),
    ),
    Case(
        "resume with a setting changed by hand",
        do.rank_edited,
        "train --resume stopped",
        2,
        ("keeps its settings", "method.r", "2 -> 4", "fix"),
    ),
]
