"""`lorica plan --measure`: time three steps of a run in a fresh process, and scale them to the run.

The process (lorica.plan.probe) builds the run as `lorica train` does, so what is timed is the run's
own step, with its rows, on this machine. Time per step is proportional to tokens, within 1.4 %
(docs/performance), so it is scaled from the tokens of the measured steps to the mean of the run.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from lorica import errors
from lorica.errors import LoricaError, TrainingError
from lorica.plan.time import Span
from lorica.training.config import TrainConfig

SPREAD = 0.15
"""Share by which a run may take more or less than what was measured says."""
Clock = Literal["wall", "process"]


@dataclass(frozen=True)
class Measured:
    """Seconds that the parts of a run take, and how many of them it has.

    start: until the first step. first: the first step. step: of the run's mean number of tokens.
    evaluation: one pass over the validation rows. checkpoint: writing one. peak_bytes: the most
    memory of the measured steps; None where the system does not say.
    """

    start: float
    first: float
    step: float
    evaluation: float
    checkpoint: float
    steps: int
    evaluations: int
    checkpoints: int
    peak_bytes: int | None

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any], clock: Clock = "wall") -> Self:
        """The answer of the probe, read on one of its clocks."""
        steps = answer["steps"]
        tokens = sum(step["tokens"] for step in steps) / len(steps)
        seconds = sum(step[clock] for step in steps) / len(steps)
        return cls(
            start=answer["start"][clock],
            first=answer["first"][clock],
            step=seconds * answer["mean_tokens"] / tokens,
            evaluation=answer["evaluation"][clock],
            checkpoint=answer["checkpoint"][clock],
            steps=answer["total"],
            evaluations=answer["evaluations"],
            checkpoints=answer["checkpoints"],
            peak_bytes=answer["peak"],
        )

    @property
    def step_span(self) -> Span:
        return spread(self.step)

    @property
    def run_span(self) -> Span:
        """From the start of the process to its last step."""
        return spread(
            self.start
            + self.first
            + (self.steps - 1) * self.step
            + self.evaluations * self.evaluation
            + self.checkpoints * self.checkpoint
        )


def spread(seconds: float) -> Span:
    return Span(seconds * (1 - SPREAD), seconds, seconds * (1 + SPREAD))


def measure(config: TrainConfig) -> Measured:
    """The cost of a run on this machine, from three of its steps in a fresh process.

    Raises: what the run would raise before its first step; TrainingError if the process ends
        without an answer.
    """
    return Measured.from_answer(probe(config))


def probe(config: TrainConfig) -> dict[str, Any]:
    """The answer of the probe's process; see lorica.plan.probe."""
    with tempfile.TemporaryDirectory(prefix="lorica-plan-") as folder:
        process = subprocess.run(
            [sys.executable, "-m", "lorica.plan.probe", folder],
            input=json.dumps(config.model_dump(mode="json")),
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode or not process.stdout:
        raise _no_answer(process)
    answer = json.loads(process.stdout)
    if "error" in answer:
        kind: type[LoricaError] = getattr(errors, answer["error"], TrainingError)
        raise kind(answer["what"], fix=answer["fix"], **answer["facts"])
    return answer


def _no_answer(process: subprocess.CompletedProcess[str]) -> TrainingError:
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    status = process.returncode
    killed = " (the system kills a process that takes too much memory)" if status == -9 else ""
    return TrainingError(
        "the process that was to measure three steps of the run ended without an answer.",
        ended=(f"by signal {-status}" if status < 0 else f"with status {status}") + killed,
        last_line=lines[-1] if lines else "(it printed nothing)",
        fix="lorica train with the same settings shows the whole error; or plan without --measure",
    )
