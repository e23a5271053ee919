"""The figures of a finished run: results.json, and the table of its model card."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorica import plain_files
from lorica.base.footprint import footprint
from lorica.core.attach import Count
from lorica.core.bank import spec_of
from lorica.core.peak_memory import peak_memory
from lorica.evaluation.trained_rows import short_digests
from lorica.training.run import EVENTS, by_step, read_events
from lorica.training.state import RunState


def figures(state: RunState, adapter_step: int) -> dict[str, Any]:
    """The content of results.json; losses are nats per label token (per row for classes).

    adapter_step: the step whose adapter is saved.
    """
    progress, data, model = state.progress, state.data, state.base.model
    schedule = state.updater.driver.schedule
    base = footprint(model)
    count = Count(state.adapter.count.trainable, base.parameters)  # weights, also packed ones
    after = progress.best_loss if adapter_step < progress.step else progress.last_eval
    return {
        "method": spec_of(model, state.adapter.name).method.name,
        "steps": progress.step,
        "adapter_step": adapter_step,
        "rows": {
            "train": len(data.train),
            "validation": len(data.validation),
            "sha256": hashlib.sha256(short_digests(data.train.contents)).hexdigest(),
        },
        "train_loss": progress.smooth,
        "held_out_loss": {"before": progress.first_eval, "after": after},
        **_accuracy(state.run.folder, adapter_step),
        "seconds": round(progress.seconds, 3),
        "tokens": progress.tokens,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "peak_memory_bytes": peak_memory(state.placement.device),
        "parameters": {"trained": count.trainable, "total": count.total, "share": count.share},
        "base": base.as_dict(),
        **({"ranks": ranks} if (ranks := schedule.ranks()) else {}),
        **({"schedule": facts} if (facts := schedule.facts()) else {}),
        "lines": state.run.notices,
    }


def card_rows(state: RunState, results: Mapping[str, Any]) -> dict[str, str]:
    """The table of the model card about the training. results: those of `figures`."""
    config, data = state.config, state.data
    rows, loss = results["rows"], results["held_out_loss"]
    size = f"{config.micro_batch_size} x {config.gradient_accumulation_steps}"
    table = {
        "data": f"{Path(config.data.path).name}, sha256 {data.digest}",
        "rows": f"{rows['train']:,} trained on, {rows['validation']:,} held out",
        "settings": f"{results['steps']:,} steps of {size} rows, {config.optimizer}, "
        f"learning rate {state.learning_rate:g}, {config.dtype}, seed {config.seed}",
        "training loss": f"{results['train_loss']:.4f} nats per label token",
    }
    if loss["before"] is not None and loss["after"] is not None:
        table["held-out loss"] = f"{loss['before']:.4f} before, {loss['after']:.4f} after"
    if tokens := config.data.add_tokens:
        table["added tokens"] = (
            f"{', '.join(tokens)}; for PEFT resize the embedding to the "
            "tokenizer in this folder first"
        )
    if (shares := results.get("held_out_accuracy")) is not None:
        table["held-out accuracy"] = f"{shares['before']:.1%} before, {shares['after']:.1%} after"
    return table


def _accuracy(folder: Path, adapter_step: int) -> dict[str, Any]:
    """Of a classifier on its held-out rows, before training and at `adapter_step`."""
    known = plain_files.is_file(folder / EVENTS)
    steps, shares = by_step(read_events(folder), "eval", "accuracy") if known else ([], [])
    if not steps:
        return {}
    after = shares[steps.index(adapter_step)] if adapter_step in steps else shares[-1]
    return {"held_out_accuracy": {"before": shares[0], "after": after}}
