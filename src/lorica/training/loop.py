"""The one training loop, for every method, on whatever devices accelerate has set up.

data -> base -> adapt -> [step, watch, log, evaluate, save]* -> adapter, results
"""

import math
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.base.fingerprint import fingerprint
from lorica.base.packing import packed
from lorica.core.attach import trainable_parameters
from lorica.core.state import adapter_state, load_adapter_state
from lorica.data.load import Data
from lorica.errors import ConfigError, Stopped
from lorica.evaluation.loss import mean_loss
from lorica.formats import commit, folder
from lorica.training import checkpoint as ckpt
from lorica.training.config import TrainConfig, read, resolved
from lorica.training.export import exporter
from lorica.training.figures import figures, peak_memory
from lorica.training.optim import load_optimizer_state, make_optimizer, optimizer_state
from lorica.training.prepare import adapted_base, lasting, load_rows, why_padded
from lorica.training.progress import Show
from lorica.training.run import CONFIG, RESULTS, Run, draw
from lorica.training.schedule import factor, order
from lorica.training.signals import Signals
from lorica.training.step import Stepper
from lorica.training.watch import check_finite, check_gradients, check_moved, check_rise


@dataclass(frozen=True)
class Result:
    """What a run came to: its folder, its figures (results.json) and its named lines."""

    folder: Path
    figures: dict[str, Any]
    lines: list[str] = field(default_factory=list)


def train(
    config: TrainConfig | str | Path | None = None,
    *,
    resume: str | Path | None = None,
    show: bool = True,
    **settings: Any,
) -> Result:
    """Train an adapter, and keep everything about it in a run folder.

    config: settings, or the path of a recipe; settings given by keyword stand over a recipe's.
    resume: a run folder to go on with, instead of a config.

    Raises: ConfigError, DataError, TargetError, BaseError, FileError, ResourceError before
        anything is trained; TrainingError when a watch stops the run; Stopped on a signal.
    """
    if resume is not None:
        if config is not None or settings:
            raise ConfigError("a resumed run keeps its settings.", fix="pass resume alone")
        if not (Path(resume) / CONFIG).is_file():
            raise ConfigError(f"{resume} is no run folder: it has no {CONFIG}.", fix="check it")
        config = read(Path(resume) / CONFIG)
    elif not isinstance(config, TrainConfig):
        config = read(Path(config) if config else None, settings)
    elif settings:
        raise ConfigError("pass a TrainConfig, or settings by keyword, not both.")
    run = Run(Path(resume or config.output))
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    main = accelerator.is_main_process
    with torch.random.fork_rng(), ExitStack() as stack:
        new = main and resume is None
        with run.beginning(resolved(config)) if new else nullcontext():
            if main:
                stack.enter_context(run.lock())
            accelerator.wait_for_everyone()
            trainer = Trainer(config, load_rows(config), run, accelerator, show=show)
        return trainer.run_to_end()


class Trainer:
    """A run while it goes on: what it holds, and the order in which things happen."""

    def __init__(
        self, config: TrainConfig, data: Data, run: Run, accelerator: Accelerator, *, show: bool
    ):
        self.config, self.run, self.accelerator = config, run, accelerator
        self.main = accelerator.is_main_process
        self.followers: list[Callable[[dict[str, Any]], None]] = []
        self.data, self.base = data, adapted_base(config, data.labels)
        self.identity = fingerprint(self.base.model, path=config.base)
        self.method = config.build_method()
        self.tensors: dict[str, nn.Parameter] = adapter_state(self.base.model)  # type: ignore[assignment]
        self.start = {k: t.detach().cpu().clone() for k, t in self.tensors.items()}
        reason = why_padded(self.base)
        self.packed = reason is None
        self.lines = [*self.base.lines, *data.lines]
        self.lines += [f"batches are padded: {reason}"] if reason else []
        self.stepper = Stepper(
            accelerator, accelerator.prepare_model(self.base.model),
            micro_batch_size=config.micro_batch_size, packed=self.packed,
            pad_id=self.base.tokenizer.pad_token_id or 0,
        )  # fmt: skip
        self.optimizer = make_optimizer(
            self.tensors, self.method, kind=config.optimizer, rate=config.learning_rate,
            decay=config.weight_decay,
        )  # fmt: skip
        self.rows_per_step = (
            config.micro_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        )
        rows = len(self.data.train)
        self.total = config.max_steps or math.ceil((config.epochs or 1) * rows / self.rows_per_step)
        self.warmup = config.warmup_steps or int(config.warmup_ratio * self.total)
        self.save_steps = config.save_steps or config.eval_steps or max(self.total // 10, 1)
        self.progress = ckpt.Progress()
        self.best: dict[str, Tensor] | None = None
        self.signals = Signals()
        self._go_on()
        if self.main:
            self.show = Show(self.total) if show else None
            self.followers += [self.show] if self.show else []
            plain = config.model_dump(mode="json")
            self.followers += [exporter(n, run.folder, plain) for n in config.report_to]

    def run_to_end(self) -> Result:
        """Train from where the run is to its last step, and write what came out."""
        config, progress = self.config, self.progress
        try:
            with self.signals:
                self._begin()
                while progress.step < self.total:
                    self._step()
                    ended = progress.step == self.total
                    if ended or _due(progress.step, config.eval_steps):
                        self._evaluate()
                    enough = self._waited_enough()
                    stop = self._stopping()
                    if ended or enough or stop or _due(progress.step, self.save_steps):
                        self._save()
                    if stop:
                        raise self._stopped(stop)
                    if enough:
                        break
            return self._finish()
        finally:
            if self.main and self.show:
                self.show.close()

    # -- one step ---------------------------------------------------------------------------

    def _step(self) -> None:
        config, progress = self.config, self.progress
        began = time.perf_counter()
        picked = order(len(self.data.train), config.seed, progress.rows, self.rows_per_step)
        share = factor(progress.step, total=self.total, warmup=self.warmup, kind=config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        here = progress.step * self.accelerator.num_processes + self.accelerator.process_index
        torch.manual_seed(config.seed * 1_000_003 + here)  # every draw of the step follows from it
        model = self.base.model.train()
        with packed(model) if self.packed else nullcontext():
            rows = [self.data.train[i] for i in picked]
            done = self.stepper(rows, self.tensors, config.max_grad_norm)
        if progress.step == 0:
            check_gradients(self.tensors)
        check_finite(done.loss, done.norm, done.where, self.tensors)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        spent = time.perf_counter() - began
        progress.step += 1
        progress.rows += self.rows_per_step
        progress.tokens += done.tokens
        progress.seconds += spent
        self._log(
            "step", step=progress.step, loss=done.loss, lr=config.learning_rate * share,
            grad_norm=done.norm, tokens=progress.tokens, tokens_per_second=done.tokens / spent,
            memory=peak_memory(),
        )  # fmt: skip
        check_rise(progress, done.loss, config.loss_limit)

    def _evaluate(self) -> None:
        if not self.data.validation:
            return
        began = time.perf_counter()
        loss = mean_loss(self.base.model, self.data.validation) if self.main else 0.0
        loss = self._agreed(loss)
        progress = self.progress
        progress.seconds += time.perf_counter() - began
        progress.last_eval = loss
        if progress.first_eval is None:
            progress.first_eval = loss
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.waited = loss, progress.step, 0
            if self.config.early_stopping_patience:
                self.best = {k: t.detach().cpu().clone() for k, t in self.tensors.items()}
        else:
            progress.waited += 1
        self._log("eval", step=progress.step, loss=loss, perplexity=math.exp(min(loss, 700)))

    def _save(self) -> None:
        if not self.main:
            return
        state = ckpt.Checkpoint(
            self.progress, adapter_state(self.base.model),
            optimizer_state(self.optimizer, self.tensors), self.best, self.data.digest,
            self.identity,
        )  # fmt: skip
        path = ckpt.save(self.run.checkpoints, state, keep=self.config.keep_checkpoints)
        self._log("checkpoint", step=self.progress.step, path=path.name)

    # -- beginning and end ------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take up the newest checkpoint of the run, if there is one. In place."""
        found = ckpt.load_newest(self.run.checkpoints)
        if found is None:
            return
        ckpt.check_same(found, data=self.data.digest, base=self.identity, run=self.run.folder)
        load_adapter_state(self.base.model, found.adapter, source="the checkpoint")
        load_optimizer_state(self.optimizer, self.tensors, found.optimizer)
        self.progress, self.best = found.progress, found.best

    def _begin(self) -> None:
        count = trainable_parameters(self.base.model)
        again = self.progress.step > 0
        self._log("resume" if again else "start", step=self.progress.step, total=self.total)
        for line in [str(count), *self.lines]:
            self._log("line", text=line)
        if not again:
            self._evaluate()

    def _finish(self) -> Result:
        model, progress = self.base.model.eval(), self.progress
        self.lines += check_moved(self.start, self.tensors)
        if self.best is not None and progress.best_step < progress.step:
            load_adapter_state(model, self.best, source="the best checkpoint")
            self.lines.append(f"the adapter is that of step {progress.best_step}, the best one")
        kept = progress.best_step if self.best is not None else progress.step
        results = figures(
            progress, self.data, model, method=self.method.name, kept=kept, lines=self.lines
        )
        if self.main:
            folder.save(
                model, self.run.adapter, tokenizer=self.base.tokenizer,
                base_path=lasting(self.config.base), labels=self.data.labels,
            )  # fmt: skip
            commit.write_json(self.run.folder / RESULTS, results)
            self._log("end", step=progress.step)
            draw(self.run.folder)
        self.accelerator.wait_for_everyone()
        return Result(self.run.folder, results, self.lines)

    # -- small things -----------------------------------------------------------------------

    def _log(self, event: str, **facts: Any) -> None:
        if not self.main:
            return
        line = self.run.log(event, **facts)
        for follower in list(self.followers):
            try:
                follower(line)
            except Exception as error:  # a tracker that fails must not end the run
                self.followers.remove(follower)
                self.run.log("line", text=f"a follower of the log failed and is left out: {error}")

    def _waited_enough(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.progress.waited >= patience

    def _stopping(self) -> int:
        """The signal that some process has received; 0: none."""
        return int(self._agreed(self.signals.received))

    def _agreed(self, mine: float) -> float:
        """The largest value of any process, so that all decide alike."""
        if self.accelerator.num_processes == 1:
            return mine
        own = torch.tensor([mine], dtype=torch.float64, device=self.accelerator.device)
        every: Any = self.accelerator.gather(own)
        return float(every.max())

    def _stopped(self, number: int) -> Stopped:
        return Stopped(
            f"stopped by {signal.Signals(number).name}; everything is saved.",
            step=f"{self.progress.step} of {self.total}",
            signal=number,
            fix=f"go on with: lorica train --resume {self.run.folder}",
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
