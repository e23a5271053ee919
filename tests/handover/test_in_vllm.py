"""Exports in vLLM itself: the log-probabilities of transformers. The rest is in the benchmark."""

import pytest

from benchmarks.runtimes import interpreter
from benchmarks.runtimes.adapters import (
    ADAPTERS,
    compared,
    ids_of,
    log_probabilities_of,
    written,
)
from benchmarks.runtimes.compare_vllm import ask
from benchmarks.runtimes.server import serving
from lorica.base.bundled import FOLDER
from lorica.base.load import load as load_base
from lorica.handover.export import hand_over

INSTALL = "python -m benchmarks.runtimes.install vllm"
CHOSEN = ("rsLoRA", "ranks and scales by pattern", "AdaLoRA, pruned to mixed ranks")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter("vllm") is None, reason=f"vLLM: run {INSTALL}"),
]


def test_exports_compute_as_in_transformers(tmp_path):
    opened, wanted = load_base("bundled"), {}
    for i, name in enumerate(CHOSEN):
        adapter, wanted[f"a{i}"] = written(ADAPTERS[name], tmp_path / f"adapter-{i}")
        hand_over(adapter, tmp_path / f"a{i}", to="vllm")
    ids = ids_of(opened)
    base = log_probabilities_of(opened, ids)
    loras = [f"{name}={tmp_path / name}" for name in wanted]
    with serving("vllm", FOLDER, *loras, log=tmp_path / "log") as address:
        for name, want in {"base": base, **wanted}.items():
            got = ask(address, name, ids, base.shape[1])
            assert compared(got, want[:-1]).worst < 1e-4
            assert name == "base" or compared(got, base[:-1]).worst > 0.1
