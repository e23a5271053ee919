"""What may change before a run goes on, and what may not: the same bytes, or refused by name.

Each change of the table is made to a run that was cut at step 5 of 6 and to what it stands on.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorica
from lorica.errors import ConfigError, LoricaError
from lorica.formats import commit
from lorica.recipe.versions import versions
from lorica.training import checkpoint as ckpt
from lorica.training.checkpoint import steps
from tests.training.rows import adapter, interrupt, same, settings, tiny_base

Edit = Callable[[Path], None]


@dataclass(frozen=True)
class Change:
    """names: a pattern that the refusal must hold; None: the run ends with the same bytes."""

    edit: Edit
    names: str | None


def setting(key: str, text: str) -> Edit:
    """Another value of a setting in the run's config.yaml; nested ones with dots."""

    def edit(root: Path) -> None:
        file = root / "run" / "config.yaml"
        *parents, leaf = key.split(".")
        start = 0
        whole = file.read_text()
        for parent in parents:
            start = re.search(rf"^{parent}:", whole, re.M).end()  # type: ignore[union-attr]
        head, tail = whole[:start], whole[start:]
        indent = "  " * len(parents)
        new, count = re.subn(
            rf"^{indent}{leaf}:.*$", f"{indent}{leaf}: {text}", tail, count=1, flags=re.M
        )
        assert count == 1 and new != tail, f"{key} is not in config.yaml, or not another one"
        file.write_text(head + new)

    return edit


def of_json(path: str, edit_value: Callable[[Any], Any]) -> Edit:
    def edit(root: Path) -> None:
        (file,) = root.glob(path)
        said = json.loads(file.read_text())
        edit_value(said)
        file.write_text(json.dumps(said))

    return edit


def config(**fields: Any) -> Edit:
    return of_json("base/config.json", lambda said: said.update(fields))


def tokenizer(edit_value: Callable[[Any], Any]) -> Edit:
    return of_json("base/tokenizer.json", edit_value)


def state(*keys: str, value: Any) -> Edit:
    def set_value(said: Any) -> None:
        for key in keys[:-1]:
            said = said[key]
        said[keys[-1]] = value

    return of_json("run/checkpoints/step-00000004/state.json", set_value)


def weights(edit_tensors: Callable[[dict[str, torch.Tensor]], Any], file: str = "base") -> Edit:
    def edit(root: Path) -> None:
        (path,) = root.glob(f"{file}/model.safetensors" if file == "base" else file)
        tensors = load_file(path)
        edit_tensors(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return edit


def of_checkpoint(**changes: Callable[[Any], Any]) -> Edit:
    """The newest checkpoint written again, with other contents and digests that fit them."""

    def edit(root: Path) -> None:
        found = ckpt.load_newest(root / "run" / "checkpoints")
        assert found is not None
        new = {key: change(getattr(found, key)) for key, change in changes.items()}
        ckpt.save(root / "run" / "checkpoints", replace(found, **new), keep=9)

    return edit


def moments(change: Callable[[torch.Tensor], torch.Tensor | None], word: str) -> Edit:
    def edit(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = sorted(k for k in state if k.endswith(word))[3]
        new = change(state[key])
        return {k: t for k, t in state.items() if k != key} | ({} if new is None else {key: new})

    return of_checkpoint(optimizer=edit)


def nothing(root: Path) -> None:
    pass


def swap(said: dict) -> None:
    vocabulary = said["model"]["vocab"]
    one, two = list(vocabulary)[300:302]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


def hollow(tensors: dict[str, torch.Tensor]) -> None:
    from lorica.base.fingerprint import places

    for tensor in tensors.values():
        flat, keep = tensor.view(-1), places(tensor.numel())
        kept = flat[keep].clone()
        flat.zero_()
        flat[keep] = kept


def one_bit(name: str) -> Edit:
    return weights(lambda tensors: tensors[name].view(torch.int32).view(-1)[7].bitwise_xor_(1))


def append(path: str, text: str) -> Edit:
    return lambda root: (root / path).write_text((root / path).read_text() + text) and None


def move_data(root: Path) -> None:
    (root / "elsewhere").mkdir()
    shutil.move(root / "rows.jsonl", root / "elsewhere" / "others.jsonl")
    setting("data.path", str(root / "elsewhere" / "others.jsonl"))(root)


def move_base(root: Path) -> None:
    shutil.move(root / "base", root / "moved.v2")
    setting("base", str(root / "moved.v2"))(root)


def rename_data(root: Path) -> None:
    shutil.move(root / "rows.jsonl", root / "rows.txt")
    setting("data.path", str(root / "rows.txt"))(root)


def rows(change: Callable[[list[str]], list[str]]) -> Edit:
    def edit(root: Path) -> None:
        file = root / "rows.jsonl"
        file.write_text("".join(change(file.read_text().splitlines(keepends=True))))

    return edit


def files(act: Callable[[Path], Any]) -> Edit:
    return lambda root: act(root / "run" / "checkpoints" / "step-00000004")


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
        of_json("base/generation_config.json", lambda said: said.update(temperature=0.3)), None
    ),
    # its weights
    "hollow weights": Change(weights(hollow), "other_weights"),
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
    "ids swapped": Change(tokenizer(swap), "other_tokenizer .*model"),
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
        of_checkpoint(origin=lambda o: replace(o, processes=2)), "trained by 2 processes"
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


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """(a folder with base, rows and a run that was cut at step 5, the adapter of a whole run)."""
    root = tmp_path_factory.mktemp("cut")
    asked = settings(tiny_base(root / "base"), root, save_steps=2)
    whole = lorica.train(**{**asked, "output": str(root / "whole")}, show=False)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 5, **asked)
    return root, adapter(whole.folder)


def resumed(cut: Path, to: Path, edit: Edit) -> Path:
    """A copy of everything, edited."""
    shutil.copytree(cut, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("whole"))
    file = to / "run" / "config.yaml"
    file.write_text(file.read_text().replace(str(cut), str(to)))
    edit(to)
    return to / "run"


def test_the_table_is_as_long_as_it_says():
    assert len(CHANGES) >= 110


@pytest.mark.parametrize(
    "name", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CHANGES]
)
def test_the_same_bytes_or_refused_by_name(cut, tmp_path, name):
    root, want = cut
    change = CHANGES[name]
    run = resumed(root, tmp_path / "copy", change.edit)
    if change.names is None:
        assert same(adapter(lorica.train(resume=run, show=False).folder), want)
        return
    with pytest.raises(LoricaError, match=change.names):
        lorica.train(resume=run, show=False)
    assert not (run / "adapter").exists()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_finished_run_can_be_longer(tmp_path, schedule):
    base = tiny_base(tmp_path / "base")
    plain = {"schedule": schedule, "warmup_ratio": 0.0}
    done = lorica.train(**settings(base, tmp_path, max_steps=4, **plain), show=False)
    longer = lorica.train(resume=done.folder, max_steps=6, save_steps=5, show=False)
    assert longer.figures["steps"] == 6
    assert any("begun for 4 steps and now ends after 6" in line for line in longer.notices)
    assert "max_steps: 6" in (done.folder / "config.yaml").read_text()
    assert steps(done.folder / "checkpoints")[-1].name == "step-00000006"
    whole = settings(base, tmp_path, max_steps=6, output=str(tmp_path / "whole"), **plain)
    unbroken = adapter(lorica.train(**whole, show=False).folder)
    assert same(adapter(longer.folder), unbroken) == (schedule == "constant")
    again = lorica.train(resume=done.folder, show=False)  # its settings are those it was given
    assert same(adapter(again.folder), adapter(longer.folder))


def test_a_schedule_of_a_method_cannot_be_longer(tmp_path):
    base = tiny_base(tmp_path / "base")
    method = {"name": "adalora", "r": 2}
    done = lorica.train(**settings(base, tmp_path, max_steps=4, method=method), show=False)
    with pytest.raises(ConfigError, match="schedule of adalora was made for 4 steps"):
        lorica.train(resume=done.folder, max_steps=6, show=False)
    before = commit.digest(done.folder / "config.yaml")
    assert "max_steps: 4" in (done.folder / "config.yaml").read_text()
    assert commit.digest(done.folder / "config.yaml") == before


def test_flags_that_reach_the_adapter_are_refused_before_anything_is_read(cut, tmp_path):
    run = resumed(cut[0], tmp_path / "copy", nothing)
    with pytest.raises(ConfigError, match="keeps its settings") as caught:
        lorica.train(resume=run, learning_rate=1.0, seed=3, show=False)
    assert "learning_rate" in str(caught.value) and "seed" in str(caught.value)


def test_another_machine_or_library_is_a_notice(cut, tmp_path, monkeypatch):
    run = resumed(cut[0], tmp_path / "copy", nothing)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr("lorica.training.resume.versions", lambda: {**versions(), "torch": "9"})
    result = lorica.train(resume=run, show=False)
    (line,) = [line for line in result.notices if "may round sums differently" in line]
    assert "threads" in line and "torch" in line
