"""One side in a fresh process: load a base, put LoRA on it, take one step of 64 tokens.

`python -m benchmarks.large.worker SIDE BASE` prints one JSON object. Times are process time in
seconds. Peaks are of resident memory in bytes, mapped file pages included, since the process began.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENS, RANK, RATE = 64, 8, 1e-4


@dataclass(frozen=True)
class Side:
    """How a side loads a base, and adds trainable matrices to its linear layers."""

    load: Callable[[str], Any]
    adapt: Callable[[Any], Any]


def lorica_load(**options: Any) -> Callable[[str], Any]:
    def load(base: str) -> Any:
        from lorica.base.load import load as load_base

        return load_base(base, dtype="bfloat16", **options).model

    return load


def lorica_adapt(model: Any) -> Any:
    import lorica
    from lorica.base.offload import to_device

    lorica.adapt(model, lorica.Lora(r=RANK), target_modules="all-linear")
    return to_device(model, next(model.parameters()).device)


def peft_load(*, nf4: bool) -> Callable[[str], Any]:
    def load(base: str) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        options: dict[str, Any] = {}
        if nf4:
            settings = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
            options = {"quantization_config": settings, "device_map": {"": "cpu"}}
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **options)

    return load


def peft_adapt(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


SIDES = {
    "lorica bfloat16": Side(lorica_load(), lorica_adapt),
    "lorica bfloat16 --offload disk": Side(lorica_load(offload="disk"), lorica_adapt),
    "lorica nf4": Side(lorica_load(quantisation="nf4"), lorica_adapt),
    "PEFT bfloat16": Side(peft_load(nf4=False), peft_adapt),
    "PEFT nf4 (bitsandbytes)": Side(peft_load(nf4=True), peft_adapt),
}


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def step(model: Any) -> None:
    """One optimizer step on 64 tokens, all of them learned."""
    import torch

    ids = (torch.arange(TOKENS) * 7 + 3).remainder(1000).unsqueeze(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    model.train()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()


def main() -> None:
    side, base = SIDES[sys.argv[1]], sys.argv[2]
    import torch
    import transformers  # noqa: F401  imports are not a part of loading

    torch.set_num_threads(1)
    result: dict[str, Any] = {"imports": peak()}
    began = time.process_time()
    model = side.load(base)
    result |= {"load_seconds": time.process_time() - began, "load_peak": peak()}
    print(json.dumps(result), flush=True)  # stands where the step takes too long
    model = side.adapt(model)
    began = time.process_time()
    step(model)
    result |= {"step_seconds": time.process_time() - began, "step_peak": peak()}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
