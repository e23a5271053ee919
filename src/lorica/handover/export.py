"""Export adapters for another runtime: files, recorded answers, and how it is started.

An adapter that the runtime reads as a LoRA is written in a normal form: the scale folded into B,
lora_alpha = r, and one rank for all layers by components that are zero, so that no rule of a
runtime's own about scales and patterns changes it. What it does not read as a LoRA is merged.

    an adapter folder, a model folder, or (llamacpp) adapter.gguf, model.gguf
    golden.jsonl         what the adapter answers; `lorica verify` replays it
    chat_template.jinja  of the training, where it had one
    start.sh             how the runtime is started with it; serve.yaml for Ray
"""

import gc
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lorica import plain_files
from lorica.base.condition_texts import fix_condition
from lorica.base.describe import locate
from lorica.base.load import LoadedModel
from lorica.base.quantise import KINDS
from lorica.core.attach import detach, use
from lorica.core.bank import spec_of
from lorica.core.condition import set_conditions
from lorica.errors import ConfigError, FileError, MergeError, listed
from lorica.formats import commit
from lorica.formats.adapter_file import AdapterFile, read
from lorica.formats.adapter_folder import adapter_folder, is_adapter
from lorica.formats.attach import attach
from lorica.formats.export import write_lora
from lorica.formats.golden import Golden, write_golden
from lorica.formats.merge import merge_to
from lorica.formats.open_adapter import open_file
from lorica.generation.prompts import prompt_format_of
from lorica.handover.changes import conditions_of, why_merged
from lorica.handover.golden_prompts import golden_prompts
from lorica.handover.lint import check_rank, lint
from lorica.handover.record import record_golden
from lorica.handover.runtimes import Runtime, runtimes
from lorica.handover.start import StartPlan, ray_config, start_script

ADAPTER, WRITTEN = "default", "lorica_written_lora"
TEMPLATE, START, RAY = "chat_template.jinja", "start.sh", "serve.yaml"
CLOUDS = ("s3://", "gs://", "abfss://", "azure://")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked for; see `hand_over`."""

    runtime: Runtime
    rank: int | None
    base: str | None
    allow_base: str | None
    dtype: str | None
    probe: list[str] | None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One adapter as it was written.

    place: from the export's folder. form: "lora" or "merged". rank: of the LoRA.
    max_difference: of a logit from base and adapter. lost: the share of the adapter's effect.
    prompts: how many answers are recorded.
    """

    name: str
    place: str
    form: str
    rank: int | None
    base: str
    has_template: bool
    max_difference: float
    lost: float
    prompts: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class HandoverReport:
    """What was written for a runtime."""

    folder: Path
    runtime: str
    exported: list[Exported]
    notices: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        exported = [vars(e) for e in self.exported]
        return {**vars(self), "folder": str(self.folder), "exported": exported}


def hand_over(
    source: str | Path,
    output: str | Path,
    *,
    to: str,
    rank: int | None = None,
    condition: str | None = None,
    base: str | None = None,
    allow_base: str | None = None,
    dtype: str | None = None,
    cloud: str | None = None,
    probe: list[str] | None = None,
) -> HandoverReport:
    """Export an adapter, or every adapter of a folder, for a runtime; whole or not at all.

    source: a run or an adapter, or a folder of several.
    to: a runtime of runtimes.toml. rank: the largest rank of a layer; None: exact, and what is no
        LoRA is merged. condition: of an adapter that is generated from one; None: all that it was
        trained on, each in a folder of its own.
    base, allow_base: see `lorica.load`. dtype: of the weights of a merged model; None: the base's.
    cloud: where Ray reads adapters, s3://...
    probe: texts to measure the difference on, beside the built-in ones.

    Raises: MergeError if the adapter is no change of weights, or is not what was written;
        ConfigError for settings that the runtime does not take; ResourceError if `output` exists.
    """
    settings = Settings(
        runtime=_runtime(to, rank, cloud),
        rank=rank,
        base=base,
        allow_base=allow_base,
        dtype=dtype,
        probe=probe,
    )
    folders = adapters_in(Path(source))
    with commit.folder(Path(output)) as staging:
        exported: list[Exported] = []
        alone = len(folders) == 1
        for name, folder in folders.items():
            name = served_name(Path(output).name) if alone else name
            exported += _export_folder(folder, staging, name, alone, condition, settings)
        _check_together(exported, settings.runtime)
        _write_start(staging, exported, settings.runtime, cloud)
    notices = list(dict.fromkeys(notice for e in exported for notice in e.notices))
    return HandoverReport(Path(output), to, exported, notices)


def adapters_in(source: Path) -> dict[str, Path]:
    """Name -> folder of the adapters at `source`: one, or several side by side.

    Raises: FileError if it holds none.
    """
    if is_adapter(adapter_folder(source)) or not plain_files.is_folder(source.resolve()):
        return {source.name: source}
    inside = [source / name for name in plain_files.names_in(source.resolve())]
    adapters = {
        served_name(path.name): path
        for path in inside
        if plain_files.is_folder(path) and is_adapter(path / "adapter")
        or plain_files.is_folder(path) and is_adapter(path)
    }
    if adapters:
        return adapters
    return {source.name: source}  # reading it says what is wrong


def served_name(name: str) -> str:
    """The name that requests use. Raises: ConfigError if a folder's name cannot be one."""
    if NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"{name!r:.80} cannot be the name of a model in requests.",
        fix="name the folder with letters, digits, points, - and _ alone",
    )


def _runtime(to: str, rank: int | None, cloud: str | None) -> Runtime:
    known = runtimes()
    if to not in known:
        raise ConfigError(f"there is no runtime {to!r:.80}.", known=", ".join(known))
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}; it must be at least 1.", fix="try 16")
    if cloud is not None and (to != "ray" or not cloud.startswith(CLOUDS)):
        raise ConfigError(
            f"cloud is {cloud!r:.200}; it is for Ray, which reads adapters from cloud storage.",
            fix=f"--to ray --cloud s3://BUCKET/adapters (or {', '.join(CLOUDS[1:])})",
        )
    return known[to]


def _export_folder(
    folder: Path,
    staging: Path,
    name: str,
    alone: bool,
    condition: str | None,
    settings: Settings,
) -> list[Exported]:
    """Export one adapter, or one for each condition that it was made for."""
    opened = _open(read(folder), settings)
    model = opened.model
    known = conditions_of(model, ADAPTER) if condition is None else ()
    if not known:
        opened.notices += fix_condition(model, opened.tokenizer, condition)
        place = "." if alone else name
        return [_export_one(opened, folder, staging, place, name, condition, settings)]
    exported = []
    for one in known:
        own = served_name(re.sub(r"[^A-Za-z0-9._-]+", "-", one).strip("-") or "condition")
        place = own if alone else f"{name}-{own}"
        opened = opened if opened.model is not None else _open(read(folder), settings)
        fix_condition(model, opened.tokenizer, one)
        exported.append(_export_one(opened, folder, staging, place, place, one, settings))
    set_conditions(model, None)
    return exported


def _open(file: AdapterFile, settings: Settings) -> LoadedModel:
    """Base and adapter as other runtimes load them: on the float base."""
    trained = None if file.base is None else file.base.quantisation
    packed = trained in KINDS
    opened = open_file(
        file,
        base=settings.base,
        allow_base=settings.allow_base,
        quantisation="none" if packed else None,
    )
    if packed:
        opened.notices.append(
            f"it was trained on the base in {trained}; exported and recorded is what it does on "
            "the float base: measure it with lorica eval --quantisation none"
        )
    return opened
