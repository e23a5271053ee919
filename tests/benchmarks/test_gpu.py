"""The check for a CUDA card, on the CPU with tiny models: the script works, and its laws hold."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import laws, page, qlora, recipe, serving
from benchmarks.gpu.size import size_for

# PEFT asks transformers by a name that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
DOCS = Path(__file__).parents[2] / "docs/performance"


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", list(laws.BOUNDS), ids=str)
def test_the_laws_hold_on_the_cpu(method, dtype):
    for law, difference in laws.differences(method, "cpu", dtype):
        assert difference <= (0 if law == "detached" else laws.BOUNDS[dtype]), law


def test_a_wrong_gradient_breaks_a_law(monkeypatch):
    monkeypatch.setattr(laws, "METHODS", ("lora",))
    monkeypatch.setattr(laws, "_gradient_difference", lambda *_: float("nan"))
    broken = laws.measure("cpu")["broken"]
    assert [case.partition(",")[0] for case in broken] == ["lora: gradient"] * 2


@pytest.mark.parametrize("side", ["LoRA", pytest.param("PEFT LoRA", marks=pytest.mark.slow)])
def test_the_recipe_is_measured(side):
    figures = recipe.measure(side, size_for(smoke=True))
    assert figures["tokens_per_second"] > 0
    assert figures["minutes"] == pytest.approx(figures["seconds"] * 1_040)


@pytest.mark.slow
@pytest.mark.parametrize("side", [*recipe.SIDES][2:])
def test_every_side_of_the_recipe_runs(side):
    assert recipe.measure(side, size_for(smoke=True))["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("side", qlora.SIDES)
def test_both_sides_of_qlora_run(side):
    assert qlora.measure(side, size_for(smoke=True))["seconds"] > 0


@pytest.mark.slow
def test_serving_is_measured():
    figures = serving.measure("cpu", shape="T", dtype=torch.float32, rounds=1)
    assert all(ratio > 0 for ratio in figures["bank_over_merged"].values())


def test_the_page_is_that_of_the_results():
    results = DOCS / "gpu.json"
    known = json.loads(results.read_text()) if results.exists() else None
    assert (DOCS / "gpu.md").read_text() == page.text(known)


def test_the_page_of_a_card():
    cost = {"seconds": 0.1, "tokens_per_second": 9000.0, "gigabytes": 20.5, "minutes": 104.0}
    results = {
        "machine": {"card": "a card", "torch": "2.13"},
        "laws": {"": {"worst": {"forward, float32": 1e-6}, "broken": [], "methods": ["lora"]}},
        "resume": {"": {"killed_after_step": 5, "steps": 40, "largest_difference": 0.0}},
        "recipe": {"LoRA": cost, "full fine-tuning": {"error": "OutOfMemoryError: 40 GB"}},
        "qlora": {"QLoRA": cost},
        "serving": {"": {"bank_over_merged": {"8 rows": 0.8}, "shape": "M", "dtype": "bfloat16"}},
    }
    text = page.text(results)
    assert "| LoRA | 0.1000 | 9,000 | 20.5 | 104 | 192 | 21 |" in text
    assert "failed: OutOfMemoryError: 40 GB" in text
    assert "Not measured" not in text
