"""A run without a learning rate takes its method's own, says so, and keeps it."""

import pytest
import yaml

import lorica
from lorica.errors import ConfigError
from lorica.training.config import read
from lorica.training.run import read_events
from tests.training.rows import settings, tiny_base

NOTICE = "learning rate {}: the default of {} with {} at hidden size 64"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"), hidden_size=64)


def without_rate(base, output, **changed):
    return {k: v for k, v in settings(base, output, **changed).items() if k != "learning_rate"}


@pytest.mark.parametrize(
    ("method", "optimizer", "rate"),
    [("lora", "adamw", 0.007), ("ia3", "adamw", 0.1), ("lora", "sgd", lorica.Lora().rates[2])],
)
def test_the_default_rate_of_the_method_is_used_and_named(base, tmp_path, method, optimizer, rate):
    changed = {"max_steps": 2, "eval_steps": None, "schedule": "constant", "warmup_ratio": 0.0}
    run = lorica.train(
        **without_rate(base, tmp_path / "run", method=method, optimizer=optimizer, **changed),
        show=False,
    )
    words = {"adamw": "AdamW", "sgd": "SGD"}[optimizer]
    assert any(line.startswith(NOTICE.format(f"{rate:g}", method, words)) for line in run.notices)
    assert {e["lr"] for e in read_events(run.folder) if e["event"] == "step"} == {rate}
    kept = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert kept["learning_rate"] == rate, "so that a later version of lorica goes on with it"


def test_a_rate_that_is_given_is_kept_and_not_explained(base, tmp_path):
    run = lorica.train(**settings(base, tmp_path / "run", learning_rate=3e-3), show=False)
    assert not any("learning rate" in line for line in run.notices)


@pytest.mark.slow
def test_runs_that_train_together_have_their_own_rates(base, tmp_path):
    changed = {"max_steps": 2, "eval_steps": None, "schedule": "constant", "warmup_ratio": 0.0}
    results = lorica.train_each(
        [without_rate(base, tmp_path / m, method=m, **changed) for m in ("lora", "lora_fa")],
        show=False,
    )
    for result, rate in zip(results, (0.007, 0.01), strict=True):
        assert {e["lr"] for e in read_events(result.folder) if e["event"] == "step"} == {rate}
        assert any(f"learning rate {rate:g}" in line for line in result.notices)


def test_a_recipe_may_ask_for_it_by_null(tmp_path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("base: bundled\ndata: a.jsonl\nlearning_rate: null\n")
    assert read(recipe).learning_rate is None
    with pytest.raises(ConfigError, match="learning_rate"):
        read(recipe, {"learning_rate": "0"})
