"""Export adapters for another runtime: files, recorded answers, and how it is started.

An adapter that the runtime reads as a LoRA is written in a normal form: the scale folded into B,
lora_alpha = r, and one rank for all layers by components that are zero, so that no rule of a
runtime's own about scales and patterns changes it. What it does not read as a LoRA is merged.

    an adapter folder, a model folder, or (llamacpp) adapter.gguf, model.gguf
    golden.jsonl         what the adapter answers; `lorica verify` replays it
    chat_template.jinja  of the training, where it had one
    start.sh             how the runtime is started with it; serve.yaml for Ray
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lorica import plain_files
from lorica.base.bundled import NAME as NAME_OF_BUNDLED
from lorica.errors import ConfigError, listed
from lorica.formats import commit
from lorica.formats.adapter_file import read
from lorica.formats.adapter_folder import is_adapter
from lorica.handover.changes import check_are_loras, conditions_in, merged_beside_others
from lorica.handover.gguf import model as gguf_model
from lorica.handover.gguf.package import gguf_package
from lorica.handover.gguf.tensors import Dtype
from lorica.handover.one_adapter import TEMPLATE, Exported, Settings, export_one
from lorica.handover.runtimes import Runtime, runtimes
from lorica.handover.sources import adapters_in, name_of_condition, served_name
from lorica.handover.start import StartPlan, ray_config, start_script

START, RAY = "start.sh", "serve.yaml"
CLOUDS = ("s3://", "gs://", "abfss://", "azure://")


@dataclass(frozen=True)
class HandoverReport:
    """What was written for a runtime."""

    folder: Path
    runtime: str
    exported: list[Exported]
    notices: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What is where, and the command that verifies it."""
        what = ", ".join(f"{adapter.name} ({adapter.form})" for adapter in self.exported)
        if not any(adapter.prompts for adapter in self.exported):
            return f"{what} for {runtimes()[self.runtime].title} in {self.folder}"
        return f"{what} for {runtimes()[self.runtime].title} in {self.folder}; verify it: " + (
            f"lorica verify {shlex.quote(str(self.folder))}"
            + ("" if self.runtime == "peft" else " --endpoint URL, once it is served")
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        exported = [vars(adapter) for adapter in self.exported]
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
    quantise: Dtype | None = None,
    cloud: str | None = None,
    probe: list[str] | None = None,
) -> HandoverReport:
    """Export an adapter, or every adapter of a folder, for a runtime; whole or not at all.

    source: a run or an adapter, or a folder of several; for llama.cpp also a base.
    to: a runtime of runtimes.toml. rank: the largest rank of a layer; None: exact, and what is no
        LoRA is merged.
    condition: of an adapter that is generated from one; None: all that it was trained on, each in
        a folder of its own.
    base, allow_base: see `lorica.load`. dtype: of a merged model's weights; None: the base's.
    quantise: of a merged model as GGUF. cloud: where Ray reads adapters: s3://...
    probe: texts to measure the difference on, beside the built-in ones.

    Raises: MergeError if the adapter is no change of weights, or is not what was written;
        ConfigError for what the runtime does not take; ResourceError if `output` exists.
    """
    runtime = _runtime(to, rank, cloud, quantise)
    if to == "llamacpp":
        gguf_package()  # it is asked for before anything is computed
    settings = Settings(
        runtime=runtime,
        rank=rank,
        base=base,
        allow_base=allow_base,
        dtype=dtype,
        quantise=quantise,
        probe=probe,
    )
    if to == "llamacpp" and is_base(str(source)):
        _check_is_for_adapters(source, rank=rank, condition=condition, base=base, dtype=dtype)
        return _export_base(str(source), Path(output), runtime, quantise or "f16")
    with commit.folder(Path(output)) as staging:
        exported = [
            export_one(folder, _created(staging / place), name, place, own_condition, settings)
            for name, place, folder, own_condition in _plan(Path(source), condition, runtime, rank)
        ]
        _check_together(exported, runtime, cloud)
        _write_start(staging, Path(output), exported, runtime, cloud)
        templates = _notices_on_templates(staging, exported, runtime)
    notices = [notice for adapter in exported for notice in adapter.notices]
    notices = list(dict.fromkeys([*notices, *templates]))
    return HandoverReport(Path(output), to, exported, notices)


def is_base(source: str) -> bool:
    """Whether `source` is a base without an adapter: "bundled", or a folder of a model."""
    folder = Path(source).resolve()
    is_model = plain_files.is_file(folder / "config.json") and not is_adapter(folder)
    return source == NAME_OF_BUNDLED or is_model


def _export_base(base: str, output: Path, runtime: Runtime, dtype: Dtype) -> HandoverReport:
    """The model that adapters as GGUF are put on. It has no recorded answers of an adapter."""
    name = served_name("base" if base == NAME_OF_BUNDLED else Path(base).resolve().name)
    with commit.folder(output) as staging:
        notices = gguf_model.write_model(base, staging / "model.gguf", dtype=dtype)
        plan = StartPlan(
            runtime=runtime, base=base, names=[name], places=["."], rank=None, template=None
        )
        _write_script(staging, plan)
    model = Exported(
        name=name,
        place=".",
        form="base",
        rank=None,
        base=base,
        has_template=False,
        has_stops=False,
        max_difference=0.0,
        lost=0.0,
        prompts=0,
        notices=tuple(notices),
    )
    return HandoverReport(output, runtime.name, [model], notices)


def _plan(
    source: Path, condition: str | None, runtime: Runtime, rank: int | None
) -> list[tuple[str, str, Path, str | None]]:
    """(name, place, folder, condition) of everything that is exported."""
    adapters, planned = adapters_in(source), []
    alone = len(adapters) == 1
    if not alone and rank is None:
        check_are_loras({name: read(folder) for name, folder in adapters.items()})
    in_place = alone and runtime.name != "ray"  # Ray reads a folder of adapters, be it of one
    for name, folder in adapters.items():
        known = conditions_in(read(folder)) if condition is None else []
        if not known:
            planned.append((name, "." if in_place else name, folder, condition))
        for value in known:
            own = name_of_condition(value)
            own = own if alone else served_name(f"{name}-{own}")
            planned.append((own, own, folder, value))
    names = [name for name, *_ in planned]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"several exports would have the name {listed(twice)}.",
            fix="export them one by one, a condition by --condition",
        )
    return planned


def _runtime(to: str, rank: int | None, cloud: str | None, quantise: str | None) -> Runtime:
    known = runtimes()
    if to not in known:
        raise ConfigError(f"there is no runtime {to!r:.80}.", known=", ".join(known))
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}; it must be at least 1.", fix="try 16")
    if quantise is not None and to != "llamacpp":
        raise ConfigError(
            f"quantise is {quantise!r:.80}; it is of GGUF files.",
            fix="--to llamacpp, or leave it out",
        )
    if cloud is not None and (to != "ray" or not cloud.startswith(CLOUDS)):
        raise ConfigError(
            f"cloud is {cloud!r:.200}; it is where Ray reads adapters.",
            fix=f"--to ray --cloud s3://BUCKET/adapters (or {', '.join(CLOUDS[1:])})",
        )
    return known[to]


def _check_is_for_adapters(source: str | Path, **options: object) -> None:
    """Raises: ConfigError for an option that the export of a base would pass over."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(
                f"--{name} is {value!r:.80}, and {source} is a base without an adapter.",
                fix="leave it out, or name a run or an adapter",
            )


def _created(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _check_together(exported: Sequence[Exported], runtime: Runtime, cloud: str | None) -> None:
    """Raises: MergeError, ConfigError if the exports cannot be served by one process."""
    merged = [adapter.name for adapter in exported if adapter.form == "merged"]
    if merged and len(exported) > 1:
        raise merged_beside_others(merged)
    bases = {adapter.base for adapter in exported}
    if len(bases) > 1:
        raise ConfigError(
            f"the adapters are of several bases: {listed(sorted(bases))}.",
            fix="export those of each base by themselves",
        )
    if runtime.name == "ray" and cloud is None and not merged:
        raise ConfigError(
            "Ray reads adapters from cloud storage alone, and no place is named.",
            fix="--cloud s3://BUCKET/adapters",
        )


def _notices_on_templates(
    folder: Path, exported: Sequence[Exported], runtime: Runtime
) -> list[str]:
    """Chat templates that the start script does not, or cannot, give to a runtime."""
    texts = {
        adapter.name: plain_files.read_text(folder / adapter.place / TEMPLATE)
        for adapter in exported
        if adapter.has_template
    }
    if len({*texts.values()}) > 1 and runtime.name != "peft":
        notice = (
            f"{listed(texts)} have different chat templates, and a server has one: export those of "
            "each template by themselves"
        )
        return [notice]
    if texts and runtime.name == "ray" and exported[0].form == "lora":
        notice = (
            "serve.yaml names no chat template, and the base's is used: if lorica verify says that "
            f"it is another one, put {TEMPLATE} into the base's folder"
        )
        return [notice]
    return []


def _write_script(folder: Path, plan: StartPlan) -> None:
    if (script := start_script(plan)) is not None:
        commit.write_text(folder / START, script)
        (folder / START).chmod(0o755)


def _write_start(
    folder: Path, output: Path, exported: Sequence[Exported], runtime: Runtime, cloud: str | None
) -> None:
    """start.sh beside the exports, and serve.yaml for Ray."""
    ranks = [adapter.rank for adapter in exported if adapter.rank is not None]
    templates = {adapter.place for adapter in exported if adapter.has_template}
    stops = {adapter.place for adapter in exported if adapter.has_stops}
    plan = StartPlan(
        runtime=runtime,
        base=exported[0].base if ranks else str(output.resolve() / exported[0].place),
        names=[adapter.name for adapter in exported],
        places=[adapter.place for adapter in exported],
        rank=max(ranks) if ranks else None,
        template=str(Path(min(templates), TEMPLATE)) if templates else None,
        stops=min(stops) if stops else None,
        cloud=cloud,
    )
    _write_script(folder, plan)
    if runtime.name == "ray":
        text = yaml.safe_dump(ray_config(plan), sort_keys=False)
        commit.write_text(folder / RAY, text)
