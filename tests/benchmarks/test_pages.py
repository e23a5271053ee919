"""The pages that benchmarks write are those in docs/: neither is edited without the other."""

import sys
from pathlib import Path

import pytest

from benchmarks import combine, methods
from benchmarks.claims import run as claims
from benchmarks.large import run as large
from benchmarks.plan import run as plan
from benchmarks.runtimes import compare_llamacpp, compare_vllm
from benchmarks.speed import run as speed

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("benchmark", "page"),
    [
        (claims, "claims.md"),
        (methods, "methods/results.md"),
        (speed, "performance/README.md"),
        pytest.param(plan, "planning/README.md", marks=pytest.mark.slow),
        (large, "performance/large.md"),
        (combine, "guides/combine-measured.md"),
        (compare_llamacpp, "handover/llamacpp-measured.md"),
        (compare_vllm, "handover/vllm-measured.md"),
    ],
    ids=["claims", "methods", "speed", "plan", "large", "combine", "llamacpp", "vllm"],
)
def test_a_page_is_what_its_benchmark_writes(benchmark, page, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--write", str(tmp_path / "page.md")])
    benchmark.main()
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert written == (DOCS / page).read_text(encoding="utf-8")
