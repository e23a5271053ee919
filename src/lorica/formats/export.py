"""Reduce an adapter to a plain LoRA that PEFT and the serving engines read.

Many methods are another way to find a low-rank update: what they end with is W + b a, and a LoRA
with the scale 1 is the same function. It is written as an adapter folder, read back, and its
logits on probe text are held against those of the adapter. Updates of full rank have no such
form; with a rank of your choice they are cut to the nearest one, and what that costs is measured.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorica.base.load import LoadedModel
from lorica.core.attach import detach, use
from lorica.core.blocks import routing
from lorica.core.condition import hold, set_conditions
from lorica.core.modes import in_mode
from lorica.core.port import spec_of, switch_of
from lorica.core.route import Everywhere
from lorica.errors import ConfigError, DataError, MergeError
from lorica.formats import commit
from lorica.formats.folder import load, save
from lorica.formats.merged import PROBE, UNSEEN, divergence, logits_of
from lorica.formats.open_adapter import open_adapter
from lorica.formats.to_lora import attach_lora, parts

EXACT = 1e-5
"""Largest difference of a logit that float32's rounding explains, for logits up to 1; for larger
ones, as a share of the largest."""
WRITTEN, READ = "lorica_written", "lorica_read"


@dataclass(frozen=True)
class ExportReport:
    """What an export gave.

    ranks: R by site; 0: the adapter does nothing there. errors: by site, the Frobenius norm of
    what is lost over that of W' - W. max_difference, max_effect: largest change of a logit.
    effect, kl: nats per probe token. lost: sqrt(kl / effect).
    """

    folder: Path
    adapter: str
    method: str
    condition: str | None
    exact: bool
    ranks: dict[str, int]
    errors: dict[str, float]
    max_difference: float
    max_effect: float
    kl: float
    effect: float
    lost: float
    tokens: int
    notices: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "folder": str(self.folder)}


def export_lora(
    source: nn.Module | str | Path,
    output: str | Path,
    *,
    name: str = "default",
    condition: str | None = None,
    rank: int | None = None,
    base: str | None = None,
    allow_base: str | None = None,
    tokenizer: Any = None,
    labels: list[str] | None = None,
    probe: list[str] | None = None,
) -> ExportReport:
    """Write an adapter as a plain LoRA folder, whole or not at all.

    source: a run or adapter folder, or a model that carries the adapter `name`; it is left as
        it was.
    condition: which one is exported, of an adapter that is made from a condition.
    rank: the largest rank of a site; None: what is exact, or nothing.
    base: another place of the base. allow_base: see `lorica.load`.
    tokenizer, labels: of a model; of a folder they are known.
    probe: texts to measure on, beside the built-in ones.

    Raises: MergeError, with nothing written, if the adapter is no LoRA (see `rank`), or the LoRA
        is not what it was; ResourceError if `output` is there or cannot be written.
    """
    if rank is not None and rank < 1:
        raise ConfigError(f"rank is {rank}; it must be at least 1.", fix="try 16")
    with commit.folder(Path(output)) as staging:
        if isinstance(source, nn.Module):
            opened = LoadedModel(source, tokenizer, base or "", labels)
        else:
            opened = open_adapter(source, base=base, allow_base=allow_base)
        with _undisturbed(opened.model, name):
            opened.notices += hold(opened.model, opened.tokenizer, condition)
            found = parts(opened.model, name, rank)
            rows = _rows(opened, probe or [])
            with use(opened.model, name):
                want = logits_of(opened, rows)
            with use(opened.model):
                bare = logits_of(opened, rows)
            attach_lora(opened.model, name, found, WRITTEN)
            save(
                opened.model,
                staging,
                WRITTEN,
                tokenizer=opened.tokenizer,
                base_path=opened.path,
                labels=opened.labels,
                prompt_format=opened.prompt_format,
            )
            detach(opened.model, WRITTEN)
            load(opened.model, staging, READ, tokenizer=opened.tokenizer)
            with use(opened.model, READ):
                got = logits_of(opened, rows)
        report = ExportReport(
            folder=Path(output),
            adapter=str(source) if not isinstance(source, nn.Module) else name,
            method=spec_of(opened.model, name).method.name,
            condition=condition,
            exact=rank is None,
            ranks={site.name: part.r for site, part in found},
            errors={site.name: part.error for site, part in found},
            **_compared(want, bare, got),
            tokens=len(want),
        )
        _judge(report, want)
        report.notices.extend([*opened.notices, *_said(report)])
    return report


@contextmanager
def _undisturbed(model: nn.Module, name: str) -> Iterator[None]:
    """Put the model into eval mode, `name` active; in the end, leave it as it was.

    Conditions are not set any more.
    """
    spec_of(model, name)
    switch = switch_of(model)
    there, route = set(switch.specs), switch.route
    learns = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with in_mode(model, training=False), routing(switch, Everywhere.of([name])):
            yield
    finally:
        set_conditions(model, None)
        for extra in switch.specs.keys() - there:
            detach(model, extra)
        switch.route = route
        for parameter, learned in learns:
            parameter.requires_grad_(learned)


def _rows(base: LoadedModel, texts: list[str]) -> list[list[int]]:
    """Token ids of the probe texts; without a tokenizer, ids from all over the vocabulary."""
    if base.tokenizer is None:
        config: Any = getattr(base.model, "config", None)
        vocabulary = getattr(config, "vocab_size", None)
        if vocabulary is None:
            raise ConfigError(
                "this model has no vocabulary to probe it with.",
                fix="pass a language model, or the folder of a run",
            )
        return [[7919 * i % vocabulary for i in range(1, 33)]]
    rows = [base.tokenizer(text)["input_ids"][: base.max_length] for text in [*PROBE, *texts]]
    if not any(rows):
        raise DataError(
            "the base's tokenizer makes no token of any probe text.",
            fix="pass probe texts that it knows",
        )
    return [row for row in rows if row]


def _compared(want: Tensor, bare: Tensor, got: Tensor) -> dict[str, Any]:
    """The figures of a report from logits (N, V) of adapter, base and LoRA."""
    kl, effect = divergence(want, got), divergence(want, bare)
    return {
        "max_difference": (want - got).abs().max().item(),
        "max_effect": (want - bare).abs().max().item(),
        "kl": kl,
        "effect": effect,
        "lost": 0.0 if kl <= UNSEEN else (kl / effect) ** 0.5 if effect > 0 else float("inf"),
    }


def _judge(report: ExportReport, want: Tensor) -> None:
    """Raises: MergeError if an exact form is not exact, or nothing can be told."""
    if not math.isfinite(report.max_difference + report.max_effect):
        raise MergeError(
            "the model's logits on the probe text are not finite.",
            fix="check the adapter with lorica eval",
        )
    allowed = EXACT * max(1.0, want.abs().max().item())
    if not report.exact or report.max_difference <= allowed:
        return
    raise MergeError(
        f"the LoRA is not what {report.method} does: logits differ by up to "
        f"{report.max_difference:.3g}. Nothing is written.",
        allowed=f"{allowed:.3g}",
        fix="check the adapter with lorica eval; if it is sound, report this as a bug",
    )


def _said(report: ExportReport) -> list[str]:
    """Named lines on what was written and measured."""
    ranks = [r for r in report.ranks.values() if r]
    idle = len(report.ranks) - len(ranks)
    what = (
        f"{report.method} as a plain LoRA: {len(ranks)} layers, "
        f"rank {min(ranks, default=0)} to {max(ranks, default=0)}"
    ) + (f"; {idle} more do nothing and are left out" if idle else "")
    measured = (
        f"logits differ by at most {report.max_difference:.3g} (the adapter moved them by up to "
        f"{report.max_effect:.3g}), on {report.tokens} probe tokens"
    )
    if report.exact:
        return [what, measured]
    worst = max(report.errors, key=report.errors.__getitem__)
    cut = (
        f"cut to that rank: of the update of {worst} {report.errors[worst]:.2%} is lost, which is "
        f"the most; KL {report.kl:.3g} of {report.effect:.3g} nats a token: {report.lost:.2%} of "
        "the adapter's effect is lost"
    )
    return [what, measured, cut]
