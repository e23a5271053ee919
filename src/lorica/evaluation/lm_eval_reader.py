"""Benchmarks of the package lm-eval (EleutherAI's harness), on the base and on the adapter.

lm-eval reads the rows of a task from the hub, writes its prompts and scores the answers; what is
taken over is the score of each row, so that the difference is paired and has an interval.
"""

from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np

from lorica.base.load import LoadedModel
from lorica.core.attach import use
from lorica.core.condition import is_conditioned
from lorica.errors import ConfigError, DataError, LoricaError, closest, listed
from lorica.evaluation.measure import Measure, Report
from lorica.evaluation.optional_package import import_package
from lorica.evaluation.stats import Interval, ratios

PREFIX = "lm_eval:"
Rows = dict[str, tuple[bool, dict[int, float]]]
"""By measure: (higher is better, the score of each row by its number)."""


def split_tasks(names: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """(our tasks, those of lm-eval without their prefix)."""
    words = ",".join([names] if isinstance(names, str) else names).split(",")
    words = [word.strip() for word in words if word.strip()]
    theirs = [word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)]
    return [word for word in words if not word.startswith(PREFIX)], list(dict.fromkeys(theirs))


def check_lm_eval_tasks(names: Sequence[str]) -> None:
    """Raises: MissingError without lm-eval; ConfigError for a task that it does not have."""
    if not names:
        return
    known = _module("lm_eval.tasks").TaskManager().all_tasks
    for name in names:
        if name not in known:
            raise ConfigError(
                f"lm-eval has no task {name!r}.",
                closest=closest(name, known),
                fix="lm_eval ls tasks lists them",
            )


def measure_lm_eval(
    report: Report, loaded: LoadedModel, names: Sequence[str], adapted: bool, batch_size: int
) -> Report:
    """The report with the measures of lm-eval's tasks.

    Raises: ConfigError for an adapter that is made from a condition; DataError if lm-eval cannot
        load or run a task.
    """
    if is_conditioned(loaded.model):
        raise ConfigError(
            "the adapter is made from a condition, and lm-eval's rows have none.",
            fix=f"leave {PREFIX}{names[0]} out",
        )
    systems = []
    for context in [use(loaded.model), nullcontext()] if adapted else [nullcontext()]:
        with context:
            systems.append(_run(loaded, names, batch_size))
    measures = [_measure(name, [system[name] for system in systems]) for name in systems[0]]
    notices = [f"lm-eval {_module('lm_eval').__version__}: {listed(names, 9)}"]
    if loaded.prompt_format is not None and loaded.prompt_format.template is not None:
        notices.append(
            "lm-eval's prompts are plain text, and the adapter was trained with "
            f"{loaded.prompt_format.name}"
        )
    return replace(
        report,
        measures=[*report.measures, *measures],
        notices=[*report.notices, *notices],
    )


def _run(loaded: LoadedModel, names: Sequence[str], batch_size: int) -> Rows:
    """The score of each row, for every metric that is a number per row."""
    harness, huggingface = _module("lm_eval"), _module("lm_eval.models.huggingface")
    try:
        with redirect_stderr(StringIO()):  # progress bars of its own
            model = huggingface.HFLM(
                pretrained=loaded.model,
                tokenizer=loaded.tokenizer,
                batch_size=batch_size,
                max_length=loaded.max_length,
            )
            results = harness.simple_evaluate(
                model=model, tasks=list(names), bootstrap_iters=0, log_samples=True
            )
    except LoricaError:
        raise
    except Exception as error:  # whatever a task, its data set or the network raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"lm-eval cannot run {listed(names, 9)}: {reason:.300}",
            fix="check the network and the name; lm-eval loads rows from the hub",
        ) from error
    return _rows(results)


def _rows(results: dict[str, Any]) -> Rows:
    rows: Rows = {}
    for task, samples in results["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if not isinstance(sample[metric], bool | int | float | np.number):
                    continue
                named = metric if sample["filter"] == "none" else f"{metric} {sample['filter']}"
                better = bool(results["higher_is_better"][task].get(metric, True))
                _, scores = rows.setdefault(f"{task} {named}", (better, {}))
                scores[sample["doc_id"]] = float(sample[metric])
    if not rows:
        raise DataError(
            "lm-eval's tasks have no score for single rows, so that nothing can be compared.",
            fix="name tasks with a metric such as acc or exact_match",
        )
    return rows


def _measure(name: str, systems: list[tuple[bool, dict[int, float]]]) -> Measure:
    numbers = sorted(systems[0][1])
    scores = np.array([[own[i] for i in numbers] for _, own in systems])
    means = ratios(scores, np.ones(len(numbers)))
    is_share = bool((scores >= 0).all() and (scores <= 1).all())
    intervals: list[Interval] = [
        means.share(i) if is_share else means.mean(i) for i in range(len(systems))
    ]
    if len(systems) > 1:
        intervals.append(means.share_difference(0, 1) if is_share else means.difference(0, 1))
    better, unit = ("higher" if systems[0][0] else "lower"), ("share" if is_share else "score")
    return Measure(name, len(numbers), better, *intervals, unit=unit)


def _module(name: str) -> Any:
    return import_package(name, "lm-eval", "lm_eval", extra="lm_eval")
