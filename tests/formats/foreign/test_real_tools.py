"""Adapters that mlx-lm, LitGPT and torchtune wrote themselves: their logits, or the refusal."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lorica
from benchmarks.runtimes import interpreter
from benchmarks.runtimes.foreign_writers import IDS, WRITERS, write_bases
from lorica.errors import FileError

ROOT = Path(__file__).parents[3]
INSTALL = "python -m benchmarks.runtimes.install foreign"
REFUSED = {
    "llama dora, exported": "in another order of rows",
    "qwen2 lora, exported": "must have them as they are",
}
COUNT = {"mlx-lm": 2, "litgpt": 2, "torchtune": 6}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(interpreter("foreign") is None, reason=f"the tools: run {INSTALL}"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return write_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("tool", WRITERS)
def test_what_the_tool_computes_is_what_is_loaded(tool, bases, tmp_path):
    paths = (ROOT, ROOT / "src", sysconfig.get_paths()["purelib"])
    command = [str(interpreter("foreign")), "-m", "benchmarks.runtimes.foreign_writers"]
    done = subprocess.run(
        [*command, tool, str(bases), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": ":".join(map(str, paths)), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(cases) == COUNT[tool]
    for case in cases:
        kind = "qwen2" if "qwen2" in case.name else "llama"
        model = AutoModelForCausalLM.from_pretrained(bases / kind).eval()
        with torch.no_grad():
            before = model(IDS).logits
        if words := REFUSED.get(case.name):
            with pytest.raises(FileError, match=words):
                lorica.load(model, case / "adapter")
            continue
        lorica.load(model, case / "adapter")
        with torch.no_grad():
            logits = model(IDS).logits
        want = load_file(case / "logits.safetensors")["logits"]
        assert (before - want).abs().max() > 0.5, case.name
        assert (logits - want).abs().max() < 5e-5, case.name
