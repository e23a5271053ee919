"""What a run will cost: parameters, tokens, memory and time, before anything is loaded."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorica.errors import ConfigError
from lorica.plan.devices import Device
from lorica.plan.memory import Memory, peak_memory
from lorica.plan.parameters import count_parameters
from lorica.plan.shapes import Shapes, base_folder, has_weights, read_shapes
from lorica.plan.time import Span, step_time, waits_for_launches
from lorica.plan.tokens import TokenCounts, count_tokens
from lorica.training.auto_dtype import with_dtype
from lorica.training.config import TrainConfig

FORWARD_SHARE = 0.5
"""Time of a token in an evaluation, as a share of its time in training with a frozen base."""
START = {"cpu": Span(3, 5, 15), "cuda": Span(5, 10, 30)}
"""Seconds for importing torch and transformers, checking the base and writing the adapter."""
LOADED_PER_SECOND = (2e9, 1e9, 2.5e8)
"""Bytes of weights that are read and converted: at best, expected, at worst (a slow disk)."""
BUSY = 1.2
"""Times as long as alone, from which on other programs on this machine are worth a notice."""


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    parameters: kind of layer -> trained parameters. base_parameters: of the base. adapter_bytes:
    of the adapter's file. epochs: passes over the rows. rows, label_tokens, real_tokens: of an
    epoch. computed_tokens: of an epoch, after shared prefixes or with padding. memory: at the peak
    of a step. step: seconds of an optimizer step; run: of the whole command, with its start and
    its evaluations, but no download; None: the speed of the device is not known.
    """

    parameters: Mapping[str, int]
    base_parameters: int
    adapter_bytes: int
    rows: int
    rows_per_step: int
    steps: int
    epochs: float
    label_tokens: int
    real_tokens: int
    computed_tokens: int
    memory: Memory
    device: Device
    step: Span | None
    run: Span | None
    shapes: Shapes
    tokens: TokenCounts
    notices: tuple[str, ...] = ()

    @property
    def trained(self) -> int:
        return sum(self.parameters.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within the memory of the device, where that is known."""
        return self.device.memory_bytes <= 0 or self.memory.total <= self.device.memory_bytes

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "parameters": {**self.parameters},
            "trained": self.trained,
            "base_parameters": self.base_parameters,
            "adapter_bytes": self.adapter_bytes,
            "rows": self.rows,
            "rows_per_step": self.rows_per_step,
            "steps": self.steps,
            "epochs": self.epochs,
            "label_tokens": self.label_tokens,
            "real_tokens": self.real_tokens,
            "computed_tokens": self.computed_tokens,
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "device": {
                "name": self.device.name,
                "kind": self.device.kind,
                "memory_bytes": self.device.memory_bytes,
            },
            "step_seconds": None if self.step is None else asdict(self.step),
            "run_seconds": None if self.run is None else asdict(self.run),
            "fits": self.fits,
            "notices": [*self.notices],
        }


def estimate(config: TrainConfig, device: Device, tokens: TokenCounts | None = None) -> Estimate:
    """The cost of a run on a device.

    tokens: those of its rows, if they were counted already.

    Raises: BaseError, DataError, FileError, TargetError, ConfigError for what cannot be trained.
    """
    config = with_dtype(config)
    shapes = read_shapes(config.base)
    _check_offload(config, shapes, device)
    tokens = tokens or count_tokens(config, shapes)
    method = config.method
    if method["name"] == "hyperlora" and not tokens.conditions:
        raise ConfigError(
            "hyperlora needs a condition for each row, and the training rows have none.",
            fix="name their column, data.columns: {condition: NAME}; or train lora",
        )
    counts = count_parameters(
        shapes, method, config, conditions=tokens.conditions, classes=tokens.classes
    )
    rows_per_step = config.micro_batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or math.ceil((config.epochs or 1) * tokens.rows / rows_per_step)
    step, notices = step_time(shapes, method, config, tokens, device), list[str]()
    if waits_for_launches(shapes, method, config, tokens, device):
        notices.append(
            "a step takes as long as Python needs to launch its kernels: a faster card is no "
            "faster; a larger --micro_batch_size uses it better"
        )
    if step is not None and (shared := busy(device)) > BUSY:
        step = replace(step, high=step.high * shared)
        notices.append(
            f"other programs use this machine now: the run may take up to {shared:.1f} times as "
            "long as alone, and its range goes up to that"
        )
    return Estimate(
        parameters=counts.by_kind,
        base_parameters=shapes.parameters,
        adapter_bytes=counts.file_bytes,
        rows=tokens.rows,
        rows_per_step=rows_per_step,
        steps=steps,
        epochs=steps * rows_per_step / max(tokens.rows, 1),
        label_tokens=tokens.label_tokens,
        real_tokens=tokens.real_tokens,
        computed_tokens=tokens.computed_tokens,
        memory=peak_memory(shapes, method, config, tokens, device),
        device=device,
        step=step,
        run=None if step is None else run_time(config, shapes, tokens, device, step, steps),
        shapes=shapes,
        tokens=tokens,
        notices=(*shapes.notices, *tokens.notices, *notices),
    )


def _check_offload(config: TrainConfig, shapes: Shapes, device: Device) -> None:
    """Raises: ConfigError for an offload that `train` refuses on this device."""
    if config.offload is None or not has_weights(base_folder(config.base)):
        return
    from lorica.base.offload import check_offload  # it imports torch, which plan does without

    kind = shapes.quantised if config.quantisation in (None, "none") else config.quantisation
    check_offload(config.base, config.dtype, kind, config.offload, on_cpu=device.kind == "cpu")


def busy(device: Device) -> float:
    """Times as long as alone that a process takes beside what runs on this machine now; 1: alone.

    device: a card has no other programs, as far as is known here.
    """
    if device.kind != "cpu" or not hasattr(os, "getloadavg"):
        return 1.0
    return max(1.0, (os.getloadavg()[0] + device.threads) / device.processors)


def run_time(
    config: TrainConfig,
    shapes: Shapes,
    tokens: TokenCounts,
    device: Device,
    step: Span,
    steps: int,
) -> Span:
    """The start, all steps, and the evaluations at the beginning, between and at the end."""
    size = shapes.bytes_of(config.dtype)
    start = START[device.kind] + Span(*(size / rate for rate in LOADED_PER_SECOND))
    start = replace(start, high=start.high * busy(device))
    evaluations = 2 + (steps - 1) // config.eval_steps if config.eval_steps else 2
    rows_per_step = config.micro_batch_size * config.gradient_accumulation_steps
    tokens_per_step = tokens.mean.tokens / tokens.mean.rows * rows_per_step
    passes = evaluations * tokens.validation_tokens / max(tokens_per_step, 1)
    return start + step * (steps + FORWARD_SHARE * passes)
