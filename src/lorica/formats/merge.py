"""Merge an adapter into its base, write a plain transformers model, and measure what it lost.

The merge is computed in float32, whatever dtype is written. Rounding to bfloat16 moves a weight by
up to 0.4 %, and an adapter that moves weights less than that is partly rounded away. So the written
folder is read again, and its predictions on probe text are compared with those of base plus
adapter, both in float32: the files are measured, see formats/verify.py.

The default limit of 0.05 lets a merge undo a twentieth of what was learned. Measured on a
260,032-parameter Llama with adapters that moved it by 1.4 nats a token: lost is 1e-6 in float32,
0.007 in bfloat16. How a quantised base is merged: base/merge_quantised.py.
"""

import gc
import math
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lorica.base import checkpoint_tensors
from lorica.base.condition_texts import fix_condition
from lorica.base.describe import locate
from lorica.base.footprint import quantised_layers
from lorica.base.load import DTYPES, LoadedModel
from lorica.base.load import load as load_base
from lorica.base.merge_quantised import TARGETS, check_target, merged_into
from lorica.base.quantised_model import checkpoint_of
from lorica.errors import ConfigError, MergeError, ResourceError
from lorica.formats import commit
from lorica.formats.adapter_file import AdapterFile, read
from lorica.formats.auxiliary_files import copy_auxiliary_files
from lorica.formats.open_adapter import base_of, open_file
from lorica.formats.stream_merge import plan_merge, write_merge
from lorica.formats.verify import KL_NOISE, Recorded, compare, logits_of, record

REPORT = "merge.json"
WRITTEN = {**DTYPES, "float16": torch.float16}
LIMIT = 0.05


@dataclass(frozen=True)
class MergeReport:
    """What a merge measured; see formats/verify.py.

    quantisation: of the base; target: what it was merged into, None: the base has floats.
    """

    folder: Path
    adapter: str
    base: str
    dtype: str
    max_difference: float
    max_effect: float
    kl: float
    effect: float
    lost: float
    tokens: int
    quantisation: str | None = None
    target: str | None = None
    notices: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "folder": str(self.folder)}


@dataclass(frozen=True)
class _Settings:
    """How to merge. dtype: of the written weights; compute: of the loaded base.

    file_bytes: of the base's largest file, of several; None: it is one file.
    """

    dtype: str
    compute: str
    file_bytes: int | None
    allow_base: str | None
    quantisation: str | None
    target: str | None
    condition: str | None

    @property
    def written(self) -> str:
        """The dtype to load the written model in: that of its files, so that they are mapped."""
        return self.dtype if self.target != "requant" and self.dtype in DTYPES else self.compute


@dataclass(frozen=True)
class _Merged:
    """What is kept of the merged model once it is written."""

    base: str
    labels: list[str] | None
    quantisation: str | None
    recorded: Recorded
    notices: list[str]


def merge_to(
    path: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    allow_base: str | None = None,
    limit: float = LIMIT,
    probe: list[str] | None = None,
    quantisation: str | None = None,
    target: str | None = None,
    condition: str | None = None,
) -> MergeReport:
    """Write base and adapter as one model folder, whole or not at all.

    path: a run or adapter folder. base: another place of its base.
    dtype: of the written weights, "float32", "bfloat16" or "float16"; None: the dtype of the
        base's files. The files are as large as those of the base.
    limit: the largest `lost` that is accepted.
    probe: texts to measure on, beside the built-in ones; best a few of your own rows.
    quantisation: of the base; None: as in training; "none": merge on the float base.
    target: "dequant" (None: this), "original" or "requant", of a quantised base.
    condition: the one to merge, of an adapter that is generated from a condition.

    Raises: MergeError, with nothing written, if the adapter has no dense equivalent, more than
        `limit` of it is lost, or `target` cannot be had; ResourceError if `output` exists or
        cannot be written.
    """
    _check_settings(dtype, target, limit)
    with commit.folder(Path(output)) as staging:
        file = read(path)
        base = base_of(file, base)
        settings = _settings(base, dtype, allow_base, quantisation, target, condition)
        merged = _write_merged(file, base, staging, settings, probe)
        gc.collect()  # or two whole models are in memory at once
        written = load_base(str(staging), dtype=settings.written, labels=merged.labels)
        difference = compare(merged.recorded, logits_of(written, merged.recorded.rows))
        report = MergeReport(
            folder=Path(output),
            adapter=str(path),
            base=merged.base,
            dtype=settings.dtype,
            **vars(difference),
            quantisation=merged.quantisation,
            target=merged.quantisation and (target or "dequant"),
        )
        _check_lost(report, limit)
        report.notices.extend([*merged.notices, *_notices(report)])
        contents = {"lorica": version("lorica"), **report.as_dict()}
        contents.pop("folder")  # it may be moved
        commit.write_json(staging / REPORT, contents)
    return report


def _check_settings(dtype: str | None, target: str | None, limit: float) -> None:
    if dtype not in (None, *WRITTEN):
        raise ConfigError(f"dtype is {dtype!r}.", known=", ".join(WRITTEN))
    if target not in (None, *TARGETS):
        raise ConfigError(f"target is {target!r}.", known=", ".join(TARGETS))
    if not limit > 0:
        raise ConfigError(f"limit is {limit}; it is a share above 0.", fix=f"try {LIMIT}")


def _settings(
    base: str,
    dtype: str | None,
    allow_base: str | None,
    quantisation: str | None,
    target: str | None,
    condition: str | None,
) -> _Settings:
    tensors = checkpoint_tensors.keys_of(locate(base))
    dtypes = checkpoint_tensors.float_dtypes(tensors) or ["float32"]
    dtype = dtype or dtypes[0]
    # A base in the dtype of its files is mapped, and computed in float32 one layer at a time.
    # Where its files have several dtypes, the others must not be rounded more than is asked for.
    exact = dtypes[0] in DTYPES and (dtype == dtypes[0] or len(dtypes) == 1)
    compute = dtypes[0] if exact else "float32"
    largest = checkpoint_tensors.largest_file(tensors)
    return _Settings(dtype, compute, largest, allow_base, quantisation, target, condition)


def _write_merged(
    file: AdapterFile, base: str, staging: Path, settings: _Settings, probe: list[str] | None
) -> _Merged:
    """Record the logits of base and adapter, merge, and write the model into `staging`.

    Tensor by tensor where that can be done, see formats/stream_merge.py; else as a whole.
    """
    opened = open_file(
        file,
        base=base,
        dtype=settings.compute,
        allow_base=settings.allow_base,
        quantisation=settings.quantisation,
    )
    model, dtype = opened.model, WRITTEN[settings.dtype]
    notices = opened.notices + fix_condition(model, opened.tokenizer, settings.condition)
    packed = quantised_layers(model).values()
    kind = next((layer.kind for layer in packed), None)
    check_target(settings.target, model, opened.path)
    for layer in packed:
        layer.like = layer.like.float()  # what bfloat16 would round off is merged
        if layer.bias is not None:  # the merged weight is rounded to its dtype, too
            layer.bias.data = layer.bias.data.float()
    plan = None
    if settings.target != "requant":
        plan = plan_merge(opened, staging, dtype, settings.target)
    recorded = record(opened, "default", probe)
    if plan is not None:
        notices += write_merge(plan)
    else:
        if settings.compute != settings.dtype:
            model.float()  # or the merged weights are rounded twice
        notices += merged_into(model, settings.target, dtype)
        _write(opened, staging, dtype, settings.file_bytes)
    copy_auxiliary_files(opened.path, file.folder, staging)
    return _Merged(opened.path, opened.labels, kind, recorded, notices)


def _write(merged: LoadedModel, folder: Path, dtype: torch.dtype, size: int | None) -> None:
    """The whole model in `dtype`, with its generation settings. In place.

    size: bytes of the largest file; None: one file.
    """
    model: Any = merged.model
    model.to(dtype)
    state = None
    if quantised_layers(model):
        state, model.config.quantization_config = checkpoint_of(model)
    try:
        sizes = {} if size is None else {"max_shard_size": size}
        model.save_pretrained(folder, state_dict=state, **sizes)
    except SafetensorError as error:  # the library wraps what the disk said
        raise ResourceError(f"cannot write {folder}: {error}.", fix="check the disk") from error
    for file in folder.glob("*.safetensors"):  # safetensors makes it 0600
        file.chmod((folder / "config.json").stat().st_mode)


def _check_lost(report: MergeReport, limit: float) -> None:
    """Raises: MergeError if more than `limit` of the adapter is lost."""
    if report.lost <= limit:
        return
    if report.target in ("original", "requant"):
        accept = math.ceil(report.lost * 20) / 20
        fix = f"--target dequant; or accept it: --limit {accept}"
    elif report.dtype != "float32":
        fix = "--dtype float32"
    else:
        fix = "use the adapter unmerged"
    raise MergeError(
        f"merging loses {report.lost:.1%} of what the adapter does; the limit is {limit:.1%}. "
        "The merged model is not kept.",
        kl=f"{report.kl:.3g} nats a token of {report.effect:.3g}, the adapter's effect; the share "
        "lost is the square root of the quotient",
        logits=f"off by at most {report.max_difference:.3g}; moved by {report.max_effect:.3g}",
        fix=fix,
    )


def _notices(report: MergeReport) -> list[str]:
    """The measured error in words."""
    into = {
        None: "",
        "dequant": f" into the dequantised {report.quantisation} weights",
        "original": " into the original weights",
        "requant": f" and quantised again as {report.quantisation}",
    }[report.target]
    measured = (
        f"merged in float32{into}, written in {report.dtype}: logits differ by at most "
        f"{report.max_difference:.3g} (the adapter moved them by up to {report.max_effect:.3g}), "
        f"KL {report.kl:.3g} of {report.effect:.3g} nats a token; {report.lost:.2%} is lost "
        f"(on {report.tokens} probe tokens)"
    )
    if report.effect <= KL_NOISE:
        return [measured, "the adapter changes nothing on the probe text: its loss is not known"]
    return [measured]
