"""Export one adapter: as a LoRA in normal form, or merged, with what it answers."""

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorica.base.condition_texts import fix_condition
from lorica.base.describe import locate, read_config
from lorica.base.load import LoadedModel
from lorica.base.quantise import KINDS
from lorica.core.attach import detach
from lorica.core.bank import spec_of
from lorica.errors import ConfigError
from lorica.formats import commit
from lorica.formats.adapter_file import read
from lorica.formats.attach import attach
from lorica.formats.export import ExportReport, write_lora
from lorica.formats.golden import GOLDEN, Golden, write_golden
from lorica.formats.merge import MergeReport, merge_to
from lorica.formats.open_adapter import open_file
from lorica.handover.changes import why_merged
from lorica.handover.gguf import lora as gguf_lora
from lorica.handover.gguf import model as gguf_model
from lorica.handover.gguf.architectures import architecture_of
from lorica.handover.gguf.modelfile import write_modelfile
from lorica.handover.gguf.tensors import Dtype
from lorica.handover.golden_prompts import golden_prompts
from lorica.handover.lint import check_rank, lint
from lorica.handover.record import record_golden
from lorica.handover.runtimes import Runtime
from lorica.handover.stop_tokens import CONFIG as GENERATION
from lorica.handover.stop_tokens import generation_config, missing_stops

ADAPTER, WRITTEN = "default", "lorica_written_lora"
TEMPLATE, MODELFILE = "chat_template.jinja", "Modelfile"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked for; see `export.hand_over`. quantise: of a model as GGUF."""

    runtime: Runtime
    rank: int | None = None
    base: str | None = None
    allow_base: str | None = None
    dtype: str | None = None
    quantise: Dtype | None = None
    probe: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One adapter as it was written.

    place: its folder, from the export's. form: "lora" or "merged". rank: of the LoRA.
    base: where the runtime finds the base. has_template, has_stops: of the training, as files.
    max_difference: of a logit from base and adapter.
    lost: the share of the adapter's effect. prompts: how many answers are recorded.
    """

    name: str
    place: str
    form: str
    rank: int | None
    base: str
    has_template: bool
    has_stops: bool
    max_difference: float
    lost: float
    prompts: int
    notices: tuple[str, ...] = ()


def export_one(
    source: Path, folder: Path, name: str, place: str, condition: str | None, settings: Settings
) -> Exported:
    """Write the adapter at `source` into an empty `folder`, for one runtime.

    Raises: MergeError if it is no change of weights, or is not what was written; ConfigError if
        the runtime does not take it.
    """
    opened = open_for_runtime(source, settings)
    notices = fix_condition(opened.model, opened.tokenizer, condition)
    reason = why_merged(opened.model, ADAPTER, settings.runtime, settings.rank)
    if reason is not None and settings.rank is not None:
        raise ConfigError(
            f"--rank is {settings.rank}, and no LoRA has it: {reason}.",
            fix="leave --rank out: the merged model is written",
        )
    if settings.runtime.name == "llamacpp":
        architecture_of(read_config(opened.path), opened.path)  # refused before it is merged
    prompts, more = golden_prompts(opened, source)
    notices += [*more, *lint(opened, settings.runtime, merged=reason is not None)]
    template, base, tokenizer = _template(opened), opened.path, opened.tokenizer
    has_stops = settings.runtime.name == "vllm" and bool(missing_stops(opened))
    method = spec_of(opened.model, ADAPTER).method.name
    recorder = partial(record_golden, opened, prompts, name=name, method=method)
    if reason is None:
        _check_is_for_lora(name, settings)
        written, golden = _write_lora(opened, folder, condition, settings, recorder)
        rank = max(written.ranks.values(), default=0) or 1  # one layer of zeros, if it does nothing
        check_rank(rank, settings.runtime)
        if has_stops:
            commit.write_json(folder / GENERATION, generation_config(opened))
    else:
        golden = recorder(adapter=ADAPTER, condition=condition)
        notices += [*opened.notices, f"{reason}: the merged model is written"]
        del opened, recorder
        gc.collect()  # or two whole models are in memory
        written = _write_merged(source, folder, base, condition, golden, settings)
        golden, rank = _with_difference(golden, written.max_difference), None
    if golden.rows:
        write_golden(folder, golden)
    else:
        notices.append(
            "no answers are recorded: no prompt fits the base's context; nothing is "
            "compared by lorica verify"
        )
    if template is not None:  # in place of the base's
        commit.write_text(folder / TEMPLATE, template)
    if settings.runtime.name == "llamacpp":
        if template is None:  # Ollama is to send the prompt as it is
            tokenizer.chat_template = None
        notices += _as_gguf(folder, base, tokenizer, rank is not None, settings)
    return Exported(
        name=name,
        place=place,
        form="merged" if rank is None else "lora",
        rank=rank,
        base=place_of(base),
        has_template=template is not None,
        has_stops=has_stops and rank is not None,
        max_difference=written.max_difference,
        lost=written.lost,
        prompts=len(golden.rows),
        notices=(*notices, *written.notices),
    )


def open_for_runtime(source: Path, settings: Settings) -> LoadedModel:
    """Base and adapter as other runtimes load them: on the float base.

    Raises: ConfigError for a classifier.
    """
    packed = _was_packed(source)
    opened = open_file(
        read(source),
        base=settings.base,
        allow_base=settings.allow_base,
        quantisation="none" if packed else None,
    )
    if opened.labels is not None:
        raise ConfigError(
            f"{source} is a classifier, and {settings.runtime.title} is started as a language "
            "model.",
            fix="write it with lorica export --to lora, or lorica merge",
        )
    if packed:
        opened.notices.append(
            "it was trained on a quantised base; what is exported and recorded is what it "
            "does on the float base (measure it: lorica eval --quantisation none)"
        )
    return opened


def _check_is_for_lora(name: str, settings: Settings) -> None:
    """Raises: ConfigError for a setting of models."""
    for option, value in (("dtype", settings.dtype), ("quantise", settings.quantise)):
        if value is not None:
            raise ConfigError(
                f"--{option} is {value}, and {name} is written as a LoRA in float32.",
                fix="leave it out; it is of models",
            )


def place_of(base: str) -> str:
    """The base as a runtime is given it: an absolute folder, or the hub id."""
    folder = Path(locate(base))
    return str(folder.resolve()) if folder.is_dir() else base


def _write_lora(
    opened: LoadedModel,
    folder: Path,
    condition: str | None,
    settings: Settings,
    recorder: Callable[..., Golden],
) -> tuple[ExportReport, Golden]:
    """Write the normal form. Of a truncated LoRA the answers of the files are recorded, else those
    of the training."""
    written = write_lora(
        opened,
        ADAPTER,
        folder,
        condition=condition,
        rank=settings.rank,
        one_rank=True,
        probe=settings.probe,
    )
    if written.exact:
        return written, recorder(adapter=ADAPTER, condition=condition)
    attach(opened.model, read(folder), WRITTEN, tokenizer=opened.tokenizer)
    try:
        return written, recorder(adapter=WRITTEN, condition=None)
    finally:
        detach(opened.model, WRITTEN)


def _write_merged(
    source: Path,
    folder: Path,
    base: str,
    condition: str | None,
    golden: Golden,
    settings: Settings,
) -> MergeReport:
    """Merge into `folder`, with the stops of the training."""
    inner = folder / "merged"
    report = merge_to(
        source,
        inner,
        base=base,
        # As GGUF it is rounded once more: to one kind of number, and not by way of another.
        dtype="float32" if settings.runtime.name == "llamacpp" else settings.dtype,
        allow_base=settings.allow_base,
        quantisation="none" if _was_packed(source) else None,
        probe=settings.probe,
        condition=condition,
    )
    for path in inner.iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(inner)
    config = folder / GENERATION
    stops = golden.header.stop_tokens if golden.header else ()
    if stops:
        fields = commit.read_json(config) if config.exists() else {}
        fields["eos_token_id"] = list(stops)
        commit.write_json(config, fields)
    return report


def _with_difference(golden: Golden, difference: float) -> Golden:
    """The recorded answers, with what rounding changed in the files that were written."""
    assert golden.header is not None
    return Golden(golden.rows, replace(golden.header, difference=difference))


def _was_packed(source: Path) -> bool:
    base = read(source).base
    return base is not None and base.quantisation in KINDS


def _template(opened: LoadedModel) -> str | None:
    """The text of the chat template of the training; None: it had none."""
    form = opened.prompt_format
    if form is None or form.kind != "chat" or form.template is None:
        return None
    return form.template if isinstance(form.template, str) else form.template.get("default")


def _as_gguf(
    folder: Path, base: str, tokenizer: Any, is_lora: bool, settings: Settings
) -> list[str]:
    """Replace the files of an adapter or a model by one of GGUF, and write Ollama's Modelfile."""
    kept = {GOLDEN, TEMPLATE, MODELFILE}
    if is_lora:
        output = folder / "adapter.gguf"
        notices = gguf_lora.write_lora(folder, base, output)
        notices += write_modelfile(folder / MODELFILE, tokenizer, "base.gguf", output.name)
        notices.append(f"{MODELFILE} is for Ollama: put the base beside it as base.gguf")
    else:
        output = folder / "model.gguf"
        notices = gguf_model.write_model(folder, output, dtype=settings.quantise or "f16")
        notices += write_modelfile(folder / MODELFILE, tokenizer, output.name)
    for path in folder.iterdir():
        if path.name not in kept and path != output:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    return notices
