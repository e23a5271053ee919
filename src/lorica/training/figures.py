"""What a run came to, as plain numbers: results.json."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lorica import plain_files
from lorica.base.quantised_model import footprint
from lorica.core.attach import Count
from lorica.core.schedule import Schedule
from lorica.data.load import Data
from lorica.evaluation.trained_rows import short_digests
from lorica.training.checkpoint import Progress
from lorica.training.config import TrainConfig
from lorica.training.run import EVENTS, by_step, read_events


def figures(
    progress: Progress,
    data: Data,
    model: nn.Module,
    *,
    method: str,
    kept: int,
    notices: list[str],
    trained: int,
    schedule: Schedule,
    folder: Path,
    peak_memory_bytes: int | None,
) -> dict[str, Any]:
    """The figures of a finished run; losses are nats per label token (per row for classes).

    kept: the step whose adapter is kept. trained: numbers that learned at the first step.
    folder: of the run, whose event log has the accuracy of a classifier.
    """
    base = footprint(model)
    count = Count(trained, base.parameters)  # packed ones as well
    after = progress.best_loss if kept < progress.step else progress.last_eval
    return {
        "method": method,
        "steps": progress.step,
        "adapter_step": kept,
        "rows": {
            "train": len(data.train),
            "validation": len(data.validation),
            "sha256": hashlib.sha256(short_digests(data.train.contents)).hexdigest(),
        },
        "train_loss": progress.smooth,
        "held_out_loss": {"before": progress.first_eval, "after": after},
        **_accuracy(folder, kept),
        "seconds": round(progress.seconds, 3),
        "tokens": progress.tokens,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes,
        "parameters": {"trained": count.trainable, "total": count.total, "share": count.share},
        "base": base.as_dict(),
        **({"ranks": ranks} if (ranks := schedule.ranks()) else {}),
        **({"schedule": facts} if (facts := schedule.facts()) else {}),
        "lines": notices,
    }


def card_rows(
    config: TrainConfig, data: Data, results: Mapping[str, Any], rate: float
) -> dict[str, str]:
    """What the model card says of a run. rate: the learning rate that was used."""
    rows, loss = results["rows"], results["held_out_loss"]
    told = {
        "data": f"{Path(config.data.path).name}, sha256 {data.digest}",
        "rows": f"{rows['train']:,} trained on, {rows['validation']:,} held out",
        "settings": f"{results['steps']:,} steps of {config.micro_batch_size} x "
        f"{config.gradient_accumulation_steps} rows, {config.optimizer}, learning rate {rate:g}, "
        f"{config.dtype}, seed {config.seed}",
        "training loss": f"{results['train_loss']:.4f} nats a label",
    }
    if loss["before"] is not None and loss["after"] is not None:
        told["held-out loss"] = f"{loss['before']:.4f} before, {loss['after']:.4f} after"
    if tokens := config.data.add_tokens:
        told["added tokens"] = (
            f"{', '.join(tokens)}; for PEFT resize the embedding to the "
            "tokenizer in this folder first"
        )
    if (shares := results.get("held_out_accuracy")) is not None:
        told["held-out accuracy"] = f"{shares['before']:.1%} before, {shares['after']:.1%} after"
    return told


def _accuracy(folder: Path, kept: int) -> dict[str, Any]:
    """Of a classifier on its held-out rows, before training and at step `kept`."""
    known = plain_files.is_file(folder / EVENTS)
    steps, shares = by_step(read_events(folder), "eval", "accuracy") if known else ([], [])
    if not steps:
        return {}
    after = shares[steps.index(kept)] if kept in steps else shares[-1]
    return {"held_out_accuracy": {"before": shares[0], "after": after}}
