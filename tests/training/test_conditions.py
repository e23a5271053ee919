"""Runs on rows with conditions: same work, same numbers; resumed; every kind of condition."""

import json

import pytest

import lorica
from lorica.core.condition import with_conditions
from lorica.errors import ConfigError, DataError
from lorica.formats.open_adapter import open_adapter
from lorica.generation.generate import generate
from tests.training.rows import ROUNDING, WORDS, adapter, farthest, interrupt, same, settings

SMALL = {"name": "hyperlora", "r": 2, "latent": 16, "hidden": 4}
CONDITIONS = {
    "task": ["cats", "dogs", "birds"],
    "pair": ["en-fr", "fr-en", "en-de"],
    "embedding": [[0.5, 1.0], [1.5, -1.0], [2, 0.25]],
    "text": ["write of cats", "write of dogs", "write of birds"],
}


def job(small_base, folder, kind="task", conditions=None, **changed):
    """Settings of a run of six steps, on rows with conditions in turn."""
    folder.mkdir()
    conditions = conditions or CONDITIONS[kind]
    rows = [
        {
            "prompt": f"Once {WORDS[i % 10]} " * (1 + i % 4),
            "completion": f"the {WORDS[(i * 3) % 10]} ran " * (1 + i % 3),
            "condition": conditions[i * 7 % 5 % len(conditions)],
        }
        for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = {**SMALL, "condition": kind, **changed.pop("method", {})}
    return settings(small_base, folder, method=method, **changed)


def run(*words, **changed):
    return lorica.train(**job(*words, **changed), show=False)


@pytest.mark.parametrize(
    "kind",
    ["task", *(pytest.param(k, marks=pytest.mark.slow) for k in ("text", "pair", "embedding"))],
)
def test_every_kind_trains_and_is_opened_again(small_base, tmp_path, kind):
    result = run(small_base, tmp_path / "a", kind, learning_rate=2e-2)
    loss = result.figures["held_out_loss"]
    assert loss["after"] < loss["before"]
    opened = open_adapter(result.folder)
    conditions = [
        c if isinstance(c, str) else json.dumps([float(n) for n in c]) for c in CONDITIONS[kind]
    ]
    texts = generate(opened, ["Once cat"] * 3, conditions=conditions, max_new_tokens=8).texts
    again = generate(opened, ["Once cat"], conditions=conditions[1:2], max_new_tokens=8).texts
    assert texts[1:2] == again
    assert not any("not used" in line for line in result.notices)


@pytest.mark.slow
def test_micro_batches_give_the_big_batch_update(small_base, tmp_path):
    """The penalty as well: it does not depend on the rows at hand."""
    changed = {"learning_rate": 2e-4, "method": {"penalty": 1.0}, "max_steps": 3}
    whole = adapter(run(small_base, tmp_path / "a", **changed).folder)
    for name, micro, steps in (("b", 4, 2), ("c", 1, 8)):
        parts = run(
            small_base,
            tmp_path / name,
            micro_batch_size=micro,
            gradient_accumulation_steps=steps,
            **changed,
        )
        assert farthest(whole, adapter(parts.folder)) < ROUNDING


@pytest.mark.slow
def test_checkpointing_and_padding_change_nothing(small_base, tmp_path, monkeypatch):
    changed = {"learning_rate": 2e-4, "max_steps": 3}
    plain = adapter(run(small_base, tmp_path / "a", **changed).folder)
    kept = run(small_base, tmp_path / "b", gradient_checkpointing=True, **changed)
    assert farthest(plain, adapter(kept.folder)) < 1e-6
    monkeypatch.setattr("lorica.base.packing.why_not_packed", lambda model: "not for this test")
    padded = run(small_base, tmp_path / "c", **changed)
    assert any("padded" in line for line in padded.notices)
    assert farthest(plain, adapter(padded.folder)) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["task", "text"])
def test_a_resumed_run_is_the_same_run(small_base, tmp_path, monkeypatch, kind):
    whole = adapter(run(small_base, tmp_path / "a", kind, save_steps=2).folder)
    config = job(small_base, tmp_path / "b", kind, save_steps=2)
    interrupt(monkeypatch, 3, **config)
    resumed = lorica.train(resume=config["output"], show=False)
    assert same(whole, adapter(resumed.folder))


@pytest.mark.slow
def test_what_a_text_means_is_kept_with_the_adapter(small_base, tmp_path):
    opened = open_adapter(run(small_base, tmp_path / "a", "text").folder)
    ids = opened.tokenizer("Once", return_tensors="pt")["input_ids"]
    with with_conditions(opened.model, ["write of cats"]):  # the base need not read it again
        assert opened.model(ids).logits.isfinite().all()
    done = generate(opened, ["Once"], conditions=["write of fish"], max_new_tokens=3)
    assert any("write of fish" in line for line in done.notices)


@pytest.mark.parametrize(
    "kind, conditions, error, words",
    [
        ("task", ["cats", None], DataError, "rows have no condition"),
        ("pair", ["en-fr", "en"], ConfigError, "'en' is no pair"),
        ("embedding", [[1.0], [1.0, 2.0]], ConfigError, "an embedding has"),
        ("embedding", ["cats"], ConfigError, "'cats' is no embedding"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit_are_refused_before_training(
    small_base, tmp_path, kind, conditions, error, words
):
    with pytest.raises(error, match=words):
        run(small_base, tmp_path / "a", kind, conditions)
    assert not (tmp_path / "a/run").exists()
