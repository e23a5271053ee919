"""Broken inputs: what is done, which command meets it, what it answers.

A status of 0 is for what goes on with a named line. The words are those that a user needs: the
thing, the place, the mend.
"""

import errno
from dataclasses import dataclass

import torch

import tests.end_to_end.broken as do
from tests.end_to_end.broken import ADAPTER, QUERY, WEIGHTS, Prepare


@dataclass(frozen=True)
class Case:
    """prepare, then `lorica <words>`; `left`: new paths that may stay behind, besides none."""

    name: str
    prepare: Prepare
    words: str
    status: int
    told: tuple[str, ...]
    left: tuple[str, ...] = ()


def train(*, base: str = "base", data: str = "rows.jsonl", output: str = "out") -> str:
    return f"train --base {base} --data {data} --output {output} --max_steps 2 --method.r 2"


TRAIN = train()
WRITE = "generate run --base base --prompt Once --max-new-tokens 2"
OTHER = "generate run --base other --prompt Once --max-new-tokens 2"
MEASURE = "eval run --base base --data rows.jsonl --no-exact-match"


def recipe(text: str) -> Prepare:
    return do.write("job.yaml", "base: base\ndata: rows.jsonl\n" + text)


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
        "longer rows than the base takes",
        do.nothing,
        f"{TRAIN} --data.max_length 9000",
        2,
        ("9000", "data.max_length", "512", "fix"),
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
        ("the weights of base", "damaged", "fix"),
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

ANSWERLESS = [{"prompt": "Tom has", "completion": ""}] * 3
PLAIN = {"prompt": "Tom has a", "completion": " red ball."}

DATA = [
    Case(
        "no answers",
        do.write("rows.jsonl", ANSWERLESS),
        TRAIN,
        3,
        ("rows.jsonl", "no row has an answer", "rows.jsonl:1", "fix"),
    ),
    Case(
        "all answers cut off",
        do.nothing,
        f"{TRAIN} --data.max_length 4 --data.overlong truncate",
        3,
        ("truncating cut the answers off", "raise data.max_length"),
    ),
    Case(
        "no end of sequence", do.no_end, TRAIN, 3, ("no end-of-sequence token", "eos_token", "fix")
    ),
    Case("an empty file", do.write("rows.jsonl", ""), TRAIN, 3, ("rows.jsonl is empty", "fix")),
    Case(
        "no rows",
        do.write("rows.json", "[]"),
        train(data="rows.json"),
        3,
        ("rows.json", "no rows", "fix"),
    ),
    Case(
        "no file",
        do.nothing,
        train(data="row.jsonl"),
        3,
        ("no file row.jsonl", "closest", "rows.jsonl"),
    ),
    Case(
        "other columns",
        do.write("rows.jsonl", [{"question": "a", "answer": "b"}]),
        TRAIN,
        3,
        ("question, answer", "data.columns: {prompt: question, completion: answer}"),
    ),
    Case(
        "a mapped column that is not there",
        do.nothing,
        f"{TRAIN} --data.columns.prompt promt",
        3,
        ("'promt'", "closest", "prompt"),
    ),
    Case(
        "broken UTF-8",
        do.write("rows.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n'),
        TRAIN,
        3,
        ("rows.jsonl is not UTF-8", "line", "0xe4", "iconv"),
    ),
    Case(
        "a broken JSON line",
        do.write("rows.jsonl", b'{"text": "a"}\n{"text": \n'),
        TRAIN,
        3,
        ("rows.jsonl", "line 2", "fix"),
    ),
    Case(
        "a ragged CSV",
        do.write("rows.csv", "prompt,completion\na,b\na,b,c\n"),
        train(data="rows.csv"),
        3,
        ("rows.csv", "line 3", "fix"),
    ),
    Case(
        "a broken Parquet file",
        do.write("rows.parquet", b"PAR1nothingPAR1"),
        train(data="rows.parquet"),
        3,
        ("rows.parquet", "Parquet", "fix"),
    ),
    Case(
        "a chat template that loops",
        do.template(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        ),
        TRAIN,
        3,
        ("chat template", "does not come to an end", "chat_template.jinja"),
    ),
    Case(
        "a chat template that is broken",
        do.template("{% for m in messages %}"),
        TRAIN,
        3,
        ("chat template", "line", "chat_template.jinja"),
    ),
    Case("no chat template", do.template(None), TRAIN, 3, ("no chat template", "fix")),
    Case(
        "overlong rows",
        do.nothing,
        f"{TRAIN} --data.max_length 12",
        3,
        ("rows.jsonl", "longer than 12 tokens", "rows.jsonl:", "truncate"),
    ),
    Case(
        "overlong rows, cut",
        do.nothing,
        f"{TRAIN} --data.max_length 20 --data.overlong truncate",
        0,
        (
            "rows.jsonl",
            "longer than 20 tokens and lose their ends",
        ),
        ("out",),
    ),
    Case(
        "repeated rows",
        do.write("rows.jsonl", [PLAIN] * 5 + [{**PLAIN, "prompt": "Ben"}]),
        TRAIN,
        0,
        ("4 rows repeat an earlier row", "rows.jsonl:1 occurs 5 times"),
        ("out",),
    ),
    Case(
        "a single class",
        do.write("rows.jsonl", [{"text": "a b", "label": "good"}] * 4),
        TRAIN,
        3,
        ("class good", "nothing to tell apart", "fix"),
    ),
    Case(
        "preferences",
        do.write("rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        TRAIN,
        3,
        ("rows.jsonl", "preferences", "fix"),
    ),
    Case(
        "no validation file",
        do.nothing,
        f"{TRAIN} --data.validation val.jsonl",
        3,
        ("no file val.jsonl", "fix"),
    ),
    Case(
        "a validation file of the same rows",
        do.nothing,
        f"{TRAIN} --data.validation rows.jsonl",
        0,
        ("24 validation rows are training rows too",),
        ("out",),
    ),
    Case(
        "a text of another kind for a classifier",
        do.write("some.jsonl", [{"text": "a b", "label": "x"}, {"text": "c d", "label": "y"}]),
        "eval run --base base --data some.jsonl",
        3,
        ("some.jsonl", "with classes", "fix"),
    ),
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

CASES = [*SETTINGS, *BASES, *ADAPTERS, *DATA, *PLACES]
