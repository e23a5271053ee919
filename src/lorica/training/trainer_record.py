"""The record in a Trainer's checkpoint, so that it is resumed with the same adapter and base.

A Trainer hands the tensors of model.safetensors to the model, and neither their folder nor the
metadata of the file. So the record is a further tensor in that file: JSON as bytes, with the
settings of the adapter, the fingerprint of its base, and a digest of the adapter's tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lorica import strict_json
from lorica.base.digest import digests
from lorica.base.fingerprint import Fingerprint, differences, fingerprint
from lorica.core.bank import spec_of
from lorica.errors import TrainingError, listed
from lorica.formats.save import dtype_of

RECORD = "lorica.record"
SETTINGS = ("method", "targets", "seed", "dtype")
FIX = "resume with the adapter and the base that the checkpoint is of, or start a new run"


def record_of(manifest: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """The record as a tensor of bytes. manifest: of the adapter folder that was saved with it."""
    record = {key: manifest[key] for key in (*SETTINGS, "base")}
    record |= {"adapter": name, "tensors": digests(tensors, rounded=False)}
    return torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)


def read_record(held: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The record in a checkpoint. Raises: TrainingError if it, or one of `tensors`, was changed."""
    try:
        record = strict_json.parse(held.contiguous().numpy().tobytes())
        then = record["tensors"]
        Fingerprint(**record["base"])
        if missing := {"adapter", *SETTINGS} - record.keys():
            raise KeyError(*sorted(missing))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            "model.safetensors of the Trainer's checkpoint is not what was saved.",
            changed=f"{RECORD}: {error!s:.200}",
            fix="resume from another checkpoint",
        ) from None
    now = digests(tensors, rounded=False)
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if changed:
        raise TrainingError(
            "model.safetensors of the Trainer's checkpoint is not what was saved.",
            changed=listed(changed),
            fix="resume from another checkpoint",
        )
    return record


def check_record(record: Mapping[str, Any], model: nn.Module, name: str, tokenizer: Any) -> None:
    """Raises: TrainingError that names every difference of adapter `name` and its base."""
    spec = spec_of(model, name)
    now = {
        "method": {"name": spec.method.name, **asdict(spec.method)},
        "targets": asdict(spec.targets),
        "seed": spec.seed,
        "dtype": dtype_of(model),
    }
    other = {"adapter": f"{record['adapter']!r} -> {name!r}"} if record["adapter"] != name else {}
    other |= _changed({key: record[key] for key in SETTINGS}, json.loads(json.dumps(now)))
    then = Fingerprint(**record["base"])
    base = fingerprint(model, tokenizer=tokenizer, whole=spec.targets.modules_to_save)
    if then.shapes != base.shapes:
        other["base"] = "another architecture or size"
    else:
        kinds = differences(then, base)
        other |= {f"base_{k}": what for k, what in kinds.items() if k != "chat_template"}
    if then.quantisation != base.quantisation:
        other["base_quantisation"] = f"{then.quantisation} -> {base.quantisation}"
    if other:
        raise TrainingError(
            "the Trainer's checkpoint is of another adapter or another base.", **other, fix=FIX
        )


def _changed(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"method.alpha": "4 -> 64", ...} of what differs."""
    changed: dict[str, str] = {}
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed |= _changed(old, new, f"{prefix}{key}.")
        elif old != new:
            changed[f"{prefix}{key}"] = f"{old!r:.80} -> {new!r:.80}"
    return changed
