"""transformers' Trainer under `accelerate launch`: two processes give the adapter of one."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("trainer_script.py")
pytestmark = pytest.mark.slow


def launch(output: Path, *flags: str, rows: int) -> dict:
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(output), str(rows)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (output / "checkpoint-4/manifest.json").is_file()
    return load_file(output / "final/adapter_model.safetensors")


def test_two_processes_give_the_adapter_of_one(tmp_path):
    one = launch(tmp_path / "one", "--cpu", "--num_processes", "1", rows=4)
    flags = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    two = launch(tmp_path / "two", *flags, rows=2)
    assert one.keys() == two.keys()
    ups = [key for key in one if "lora_B" in key]  # from zero: all of it is training
    moved = math.hypot(*(float(one[key].norm()) for key in ups))
    apart = math.hypot(*(float((one[key] - two[key]).norm()) for key in one))
    assert moved > 0.1 and apart < 0.01 * moved
