"""Packing needs less memory than bfloat16, while loading too: float weights go one at a time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorica.base.bundled import FOLDER
from tests.training.rows import write_rows

TRAIN = """
import json, sys
from pathlib import Path
import lorica
lorica.train(**json.loads(sys.argv[1]), show=False)
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A random Llama of 160 million parameters in bfloat16, in several files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=9,
        num_attention_heads=16,
        num_key_value_heads=16,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100MB")
    for file in FOLDER.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def peak(base: Path, folder: Path, **settings: object) -> int:
    """KiB that a process held at most while it trained two steps."""
    config = {
        "base": str(base),
        "data": {"path": str(write_rows(folder / "rows.jsonl", 12)), "validation": 0},
        "max_steps": 2,
        "micro_batch_size": 2,
        "dtype": "bfloat16",
        "output": str(folder / "run"),
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(config)],
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_nf4_trains_in_less_memory_than_bfloat16(large, tmp_path):
    for name in ("floats", "packed"):
        (tmp_path / name).mkdir()
    floats = peak(large, tmp_path / "floats")
    packed = peak(large, tmp_path / "packed", quantisation="nf4")
    size = sum(file.stat().st_size for file in large.glob("*.safetensors")) // 1024
    assert packed < floats - size // 4, (packed, floats, size)
