"""A run that starts from another adapter: its first loss is that adapter's, and no other fits."""

from pathlib import Path

import pytest

import lorica
from lorica.errors import ConfigError, FileError
from tests.training.rows import adapter, same, settings

BASE = Path("bundled")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run of LoRA."""
    folder = tmp_path_factory.mktemp("first")
    return lorica.train(**settings(BASE, folder, max_steps=3), show=False)


def test_the_new_run_begins_where_the_other_ended(first, tmp_path):
    again = lorica.train(
        **settings(BASE, tmp_path, max_steps=1, init_from=str(first.folder)), show=False
    )
    before, after = (r.figures["held_out_loss"] for r in (again, first))
    assert before["before"] == pytest.approx(after["after"], rel=1e-5)
    assert any("begins with the adapter" in line for line in again.lines)
    assert not same(adapter(again.folder), adapter(first.folder))


def test_an_adapter_of_peft_is_a_start(first, tmp_path):
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((first.folder / "adapter" / name).read_bytes())
    again = lorica.train(
        **settings(BASE, tmp_path / "b", max_steps=1, init_from=str(tmp_path)), show=False
    )
    after = first.figures["held_out_loss"]["after"]
    assert again.figures["held_out_loss"]["before"] == pytest.approx(after, rel=1e-5)


OTHER = {
    "another rank": ({"method": {"name": "lora", "r": 2}}, "other settings"),
    "another alpha": ({"method": {"name": "lora", "r": 4, "alpha": 4.0}}, "8.0 there, 4.0 here"),
    "another method": ({"method": {"name": "dora", "r": 4}}, "an adapter of lora"),
    "other targets": ({"target_modules": ["q_proj"]}, "other targets or ranks"),
    "other ranks": ({"rank_pattern": {"q_proj": 2}}, "other targets or ranks"),
    "other alphas": ({"alpha_pattern": {"q_proj": 2.0}}, "alpha_pattern"),
    "a schedule": ({"method": {"name": "aflora"}, "max_steps": 40}, "by a schedule"),
}


@pytest.mark.parametrize("case", OTHER)
def test_an_adapter_that_does_not_fit_is_refused_with_the_fix(first, tmp_path, case):
    changed, words = OTHER[case]
    with pytest.raises(ConfigError, match=words) as caught:
        lorica.train(**settings(BASE, tmp_path, **changed, init_from=str(first.folder)), show=False)
    assert str(first.folder) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_adapter_is_named(tmp_path):
    with pytest.raises(FileError, match="is not there"):
        lorica.train(**settings(BASE, tmp_path, init_from="runs/nowhere"), show=False)


def test_dropout_and_the_start_may_differ(first, tmp_path):
    method = {"name": "lora", "r": 4, "dropout": 0.1, "init": "gaussian"}
    lorica.train(
        **settings(BASE, tmp_path, max_steps=1, method=method, init_from=str(first.folder)),
        show=False,
    )
