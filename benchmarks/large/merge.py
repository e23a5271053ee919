"""Merge a LoRA into a large base: peak of memory and time, by lorica and by PEFT.

    python -m benchmarks.large.merge BASE [--folder SCRATCH] [--only lorica|peft]

BASE: a folder of a Llama, as `benchmarks.large` writes them. The LoRA has random numbers, r = 16 on
all linear layers. Each side runs in a process of its own, one after the other, and what it wrote
is deleted. lorica also measures what the merge lost, and reads its files again. PEFT's side is
`merge_and_unload` and `save_pretrained` in the dtype of the base, which measure nothing. The peak
is the resident memory of the process, pages of mapped files included.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from safetensors import safe_open

RANK = 16
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORICA = """
import sys
from lorica.formats.merge import merge_to
report = merge_to(sys.argv[1], sys.argv[2], base=sys.argv[3], limit=1e9)
print("lost", report.lost)
"""
PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[3], dtype="auto")
model = PeftModel.from_pretrained(model, sys.argv[1]).merge_and_unload()
model.save_pretrained(sys.argv[2], max_shard_size=int(sys.argv[4]))
"""
PEAK = """
from pathlib import Path
status = Path("/proc/self/status").read_text()
print("peak", next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def write_adapter(base: Path, folder: Path) -> Path:
    """A LoRA with random numbers, in PEFT's layout."""
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(0), {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in sorted(weights.keys()):
                name = key.removesuffix(".weight")
                if name.rpartition(".")[2] not in LINEAR:
                    continue
                outputs, inputs = weights.get_slice(key).get_shape()
                a = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
                b = torch.randn(outputs, RANK, generator=generator) * 0.02
                tensors[f"base_model.model.{name}.lora_A.weight"] = a
                tensors[f"base_model.model.{name}.lora_B.weight"] = b
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": list(LINEAR),
        "base_model_name_or_path": str(base),
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def measure(code: str, adapter: Path, output: Path, base: Path) -> dict[str, float]:
    """Seconds by the clock and of the processors, and what the process printed.

    Raises: RuntimeError if it failed.
    """
    largest = max(file.stat().st_size for file in base.glob("*.safetensors"))
    arguments = [str(adapter), str(output), str(base), str(largest)]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code + PEAK, *arguments], capture_output=True, text=True
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shutil.rmtree(output, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    printed = (line.split() for line in done.stdout.splitlines())
    figures = {words[0]: float(words[1]) for words in printed if len(words) == 2}
    return {"seconds": seconds, "cpu": cpu, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("merge-scratch"))
    parser.add_argument("--only", choices=("lorica", "peft"))
    options = parser.parse_args()
    base = options.base.resolve()
    sizes = [file.stat().st_size for file in sorted(base.glob("*.safetensors"))]
    print(f"{base.name}: {len(sizes)} files, {sum(sizes) / 2**30:.2f} GiB")
    print(f"two files and 1 GiB: {2 * max(sizes) / 2**30 + 1:.2f} GiB")
    adapter = write_adapter(base, options.folder / "adapter")
    try:
        for side, code in {"lorica": LORICA, "peft": PEFT}.items():
            if options.only in (None, side):
                figures = measure(code, adapter, options.folder / "merged", base)
                lost = f", {figures['lost']:.2%} lost" if "lost" in figures else ""
                peak = figures["peak"] / 2**20
                print(
                    f"{side:8} peak {peak:6.2f} GiB, {figures['seconds']:6.0f} s{lost}", flush=True
                )
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
