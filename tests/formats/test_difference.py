"""Two adapters compared: the same, scaled, of other layers, of other methods, without weights."""

import json
from pathlib import Path

import pytest

import lorica
from lorica import Lora, cli
from lorica.errors import BaseError, MergeError
from lorica.formats.difference import difference
from tests.formats.exports import adapted
from tests.laws.bases import CASES, move, small_llama, trained
from tests.marks import slow_but

LLAMA = next(case for case in CASES if case.name == "llama")


def test_an_adapter_is_the_same_as_its_export(base: str, tmp_path: Path):
    path = lorica.save(adapted(use_rslora=True), tmp_path / "a")
    lorica.export_lora(path, tmp_path / "b", base=base)
    report = difference(path, tmp_path / "b", base=base)
    assert report.same and report.kl < 1e-8
    assert all(layer.cosine == pytest.approx(1) for layer in report.layers.values())


def test_a_scaled_adapter_has_the_same_direction(base: str, tmp_path: Path):
    path = lorica.save(adapted(), tmp_path / "a")
    lorica.combine({path: 0.5}, tmp_path / "half", base=base)
    report = difference(path, tmp_path / "half", base=base)
    assert not report.same
    for layer in report.layers.values():
        assert layer.distance == pytest.approx(0.5, rel=1e-4)
        assert layer.cosine == pytest.approx(1, rel=1e-4)
        assert layer.first == pytest.approx(2 * layer.second, rel=1e-4)


def test_a_layer_that_only_one_changes_is_far_apart(base: str, tmp_path: Path):
    first = lorica.save(adapted(target_modules=["q_proj"]), tmp_path / "a")
    second = lorica.save(adapted(target_modules=["q_proj", "v_proj"]), tmp_path / "b")
    layers = difference(first, second, base=base).layers
    only = [layer for name, layer in layers.items() if name.endswith("v_proj")]
    assert only and all((x.distance, x.cosine, x.first) == (1.0, None, 0.0) for x in only)


@pytest.mark.parametrize(
    "name",
    slow_but(("dora", "prefix_tuning"), ("dora", "mora", "full", "prefix_tuning", "ia3")),
)
def test_other_methods_are_compared(name: str, base: str, tmp_path: Path):
    first = lorica.save(trained(name, LLAMA), tmp_path / "a")
    second = lorica.save(trained(name, LLAMA, seed=2), tmp_path / "b")
    same, other = (difference(first, path, base=base) for path in (first, second))
    assert same.same and not other.same
    assert other.methods == (name, name) and other.max_difference > 0
    assert bool(other.others) == (name in ("prefix_tuning", "full"))


def test_an_adapter_for_each_condition_is_refused(base: str, tmp_path: Path):
    path = lorica.save(trained("hyperlora", LLAMA), tmp_path / "a")
    with pytest.raises(MergeError, match="for each condition") as raised:
        difference(path, path, base=base)
    assert "lorica export --condition" in str(raised.value)


def test_another_base_is_refused(base: str, tmp_path: Path):
    first = lorica.save(adapted(), tmp_path / "a")
    changed = small_llama()
    changed.get_parameter("model.layers.0.mlp.up_proj.weight").data.add_(0.1)
    second = lorica.save(move(lorica.adapt(changed, Lora(r=4))), tmp_path / "b")
    with pytest.raises(BaseError):
        difference(first, second, base=base)


def test_the_command(base: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    first, second = (
        str(lorica.save(adapted(alpha=alpha), tmp_path / str(alpha))) for alpha in (4, 5)
    )
    assert cli.run(["diff", first, first, "--base", base]) == 0
    assert "are the same up to rounding" in capsys.readouterr().out
    assert cli.run(["diff", first, second, "--base", base]) == 1
    words = capsys.readouterr().out
    assert "differ: logits by up to" in words and "more (--json has all)" in words
    assert cli.run(["diff", first, second, "--base", base, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["methods"] == ["lora", "lora"]
