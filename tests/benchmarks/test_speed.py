"""The figures of the speed benchmark, from rounds that are made up."""

import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed import figures, page, run
from benchmarks.speed.process import SideError
from benchmarks.speed.run import apart
from benchmarks.speed.sections import EACH, SCALING, SECTIONS, SHIPPED, SOLO


def side(seconds: list[float], tokens: int = 100, kind: str = "peft") -> dict:
    rounds = [{"seconds": s, "wall": s, "tokens": tokens} for s in seconds]
    return {
        "kind": kind,
        "first_step": 1.0,
        "versions": {"torch": "2"},
        "memory": 2**20,
        "rounds": rounds,
    }


def found(name: str, sides: dict) -> dict:
    machine = {"processor": "x", "capability": "y", "bf16": [], "gpu": None}
    return {
        "section": name,
        "dtype": "float32",
        "machine": machine,
        "sides": sides,
        "gates": [],
        "missing": ["TRL, bf16=False"],
    }


def test_ratios_are_taken_within_a_round():
    fast, slow = side([1.0, 4.0]), side([2.0, 8.0])
    assert figures.ratios(fast, slow, is_time=False) == [2.0, 2.0]
    assert figures.ratios(fast, slow, is_time=True) == [0.5, 0.5]


def test_every_side_has_what_it_is_measured_by():
    names = [side.name for side in EACH.sides]
    ((title, by),) = figures.columns(EACH, names).items()
    assert title == "speed relative to the row above"
    assert [by[name] for name in names] == [s for s in SOLO for _ in range(2)]
    assert figures.columns(SHIPPED, ["Lorica", SHIPPED.over[1]]) == {
        f"speed relative to {SHIPPED.over[1]}": {
            "Lorica": SHIPPED.over[1],
            SHIPPED.over[1]: SHIPPED.over[1],
        }
    }


def test_a_line_is_not_off_itself_and_a_bend_is():
    assert figures.off_line([1, 2, 4], [3, 5, 9]) == pytest.approx(0)
    assert figures.off_line([1, 2, 4], [1, 4, 16]) > 0.2


def test_a_gate_lets_no_nan_no_zero_and_no_other_tensors_through():
    one = {"a": torch.ones(2), "b": torch.ones(2)}
    assert apart(one, one) == 0
    assert apart(one, {**one, "b": torch.ones(2) * 1.5}) == pytest.approx(0.5)
    assert apart(one, {"a": one["a"]}) == math.inf
    assert apart(one, {**one, "b": torch.full((2,), math.nan)}) == math.inf
    assert apart({"a": torch.zeros(2)}, {"a": torch.zeros(2)}) == math.inf


def test_the_page_has_every_section_and_says_what_was_left_out(tmp_path):
    sides = {s.name: side([1.0, 2.0]) for s in SHIPPED.sides if s.peer != "trl"}
    sizes = {s.name: side([1.0, 2.0], 100 * s.batch, s.kind) for s in SCALING.sides}
    results = {"a": found("as shipped", sides), "b": found("scaling", sizes)}
    page.write(results, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert "Left out, not installed: TRL, bf16=False." in text
    assert "| 1,600 tokens |" in text
    assert (tmp_path / page.PICTURE).is_file()


def test_no_two_sides_of_a_section_have_one_name():
    for section in SECTIONS.values():
        assert len({side.name for side in section.sides}) == len(section.sides)


class FakeProcess:
    """Answers as a worker does; the side "broken" cannot be built."""

    def __init__(self, side, **_):
        self.side = side

    def __call__(self, do: str, **_):
        if do == "build" and self.side.name == "broken":
            raise SideError("broken: KeyError: 'lora_'")
        return {"build": {"first_step": 1.0, "versions": {}}, "memory": {"bytes": 1}}.get(
            do, {"seconds": 1.0, "wall": 1.0, "tokens": 1}
        )

    def close(self) -> None:
        pass


def test_a_side_that_cannot_be_built_is_left_out_by_name(monkeypatch):
    names = ["broken", "whole", "other"]
    sides = [SimpleNamespace(name=n, kind="peft", gate="", as_dict=dict) for n in names]
    section = SimpleNamespace(sides=sides, together=True, missing=list)
    monkeypatch.setattr(run, "Process", FakeProcess)
    out = run.measured(section, 2)  # type: ignore[arg-type]
    assert list(out["sides"]) == ["whole", "other"]
    assert all(len(side["rounds"]) == 2 for side in out["sides"].values())
    assert out["failed"] == ["broken: KeyError: 'lora_'"]
    sides_of_page = {s.name: side([1.0, 2.0]) for s in SHIPPED.sides if s.peer != "trl"}
    text = page.section({**found("as shipped", sides_of_page), "failed": out["failed"]})
    assert "Left out, failed on this machine: broken: KeyError: 'lora_'." in text
