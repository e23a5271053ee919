"""The one training loop, for every method, on whatever devices accelerate has set up.

data -> base -> adapt -> [step, watch, log, evaluate, save]* -> adapter, results

A method's schedule is driven here, and nowhere else: see lorica.core.schedule.
"""

import math
import signal
import time
from collections.abc import Sequence

from accelerate import Accelerator
from torch import Tensor, nn

from lorica.base.fingerprint import Fingerprint
from lorica.base.load import LoadedModel
from lorica.core.attach import trainable_parameters
from lorica.core.drive import Driver
from lorica.core.peak_memory import peak_memory
from lorica.core.port import spec_of
from lorica.core.rates import rates_of
from lorica.core.state import adapter_state, load_adapter_state
from lorica.data.load import Data
from lorica.errors import Stopped
from lorica.formats import commit
from lorica.formats.peft.kinds import peft_notices
from lorica.formats.save import save
from lorica.training import checkpoint as ckpt
from lorica.training import optim, prepare, resume, watch
from lorica.training.config import TrainConfig
from lorica.training.figures import card_rows, figures
from lorica.training.log import Log, Silent
from lorica.training.passes import batching_of
from lorica.training.pictures import RANKS, draw, draw_ranks
from lorica.training.progress import Show
from lorica.training.run import RESULTS, Result, Run, losses_of
from lorica.training.schedule import factor, order
from lorica.training.signals import Signals
from lorica.training.step import Outcome, Part
from lorica.training.together import agreed, step_of, stepper_for


class Trainer:
    """A run while it goes on: what it holds, and the order in which things happen."""

    def __init__(
        self,
        config: TrainConfig,
        data: Data,
        run: Run,
        accelerator: Accelerator,
        *,
        show: bool,
        base: LoadedModel | None = None,
        name: str = "default",
        notices: Sequence[str] = (),
        identity: Fingerprint | None = None,
    ):
        """config: with a learning rate. base: one that other runs train on too, by other names."""
        self.rate = config.learning_rate or 0.0  # prepare.with_learning_rate has chosen one
        self.config, self.run, self.accelerator, self.name = config, run, accelerator, name
        self.main, self.alone = accelerator.is_main_process, base is None
        self.data = data
        self.base, self.device = (base, None) if base else prepare.base_for(config, data.labels)
        told = prepare.add_adapter(self.base, config, data, name)
        if self.device:
            self.device.take_up()
        model = self.base.model
        self.identity = identity or prepare.identity_of(self.base, config)
        found = ckpt.load_newest(run.checkpoints)
        told += prepare.complete_start(
            self.base, config, data, None if found is None else found.adapter, name
        )
        self.method = spec_of(model, name).method
        state = adapter_state(model, name)
        self.tensors = {k: t for k, t in state.items() if isinstance(t, nn.Parameter)}
        self.count = trainable_parameters(model)
        self.start = {
            k: t.detach().cpu().clone() for k, t in self.tensors.items() if t.requires_grad
        }
        self.packed, self.batching, lines = batching_of(self.base, data, config)
        self.notices = [*run.notices, *notices, *self.base.notices, *told, *data.notices, *lines]
        self.shares = self.packed and prepare.why_not_shared(self.base, config, name) is None
        self.stepper = stepper_for([self])
        self.notices += self.stepper.said(data.train[: config.micro_batch_size])
        self.rows_per_step = (
            config.micro_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        )
        rows = prepare.rows_for(self.rows_per_step, len(self.data.train))
        self.total = config.max_steps or math.ceil((config.epochs or 1) * rows / self.rows_per_step)
        self.warmup = config.warmup_steps or int(config.warmup_ratio * self.total)
        self.driver = Driver(
            model,
            total=self.total,
            epoch=rows // self.rows_per_step,
            name=name,
            schedule=prepare.kill_and_revive(config, self.device),
        )
        self.driver.schedule.probe = prepare.probe(model, data.train, name)
        self.optimizer = optim.make_optimizer(
            self.tensors,
            rates_of(model, self.rate, name),
            kind=config.optimizer,
            decay=config.weight_decay,
            masked=self.driver.schedule.live().keys(),
        )
        self.save_steps = config.save_steps or config.eval_steps or max(self.total // 10, 1)
        self.progress = ckpt.Progress()
        self.best: dict[str, Tensor] | None = None
        self.signals = Signals()
        if found is not None:
            self.notices += resume.continue_from(self, found)
        seen = Show(self.total, "" if self.alone else run.folder.name) if show else None
        self.log = Log(run, seen, config) if self.main else Silent()

    def run_to_end(self) -> Result:
        """Train from where the run is to its last step, and write what came out."""
        try:
            with self.signals:
                self.begin()
                while self.goes_on:
                    began = time.perf_counter()
                    (done,) = step_of([self], self.stepper)
                    self.take(done, time.perf_counter() - began)
                    self.look()
            return self.finish()
        finally:
            self.close()

    @property
    def goes_on(self) -> bool:
        return self.progress.step < self.total and not self._waited_enough()

    def close(self) -> None:
        self.log.close()
        if self.device:
            self.device.close()

    # -- one step ---------------------------------------------------------------------------

    def part(self) -> Part:
        """What the step that comes is to do. Sets its learning rates."""
        config, progress = self.config, self.progress
        picked = order(len(self.data.train), config.seed, progress.rows, self.rows_per_step)
        self.share = factor(
            progress.step, total=self.total, warmup=self.warmup, kind=config.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.share
        return Part(
            [self.data.train[i] for i in picked],
            config.micro_batch_size,
            self.tensors,
            config.max_grad_norm,
            self.driver.penalty,
            None if self.alone else self.name,
            self._draw(),
        )

    def _draw(self) -> int:
        """The seed of the step that comes, of this process."""
        acc, step = self.accelerator, self.progress.step
        return self.config.seed * 1_000_003 + step * acc.num_processes + acc.process_index

    def take(self, done: Outcome, spent: float) -> None:
        """Update with the gradients of a step, and note what it did. spent: seconds on them."""
        config, progress, began = self.config, self.progress, time.perf_counter()
        if progress.step == 0:
            watch.check_gradients(self.tensors)
            self.say(*watch.notices_of_first_loss(done.loss, prepare.vocabulary(self.base)))
        watch.check_finite(done.loss, done.norm, done.where, self.tensors)
        self._update()
        spent += time.perf_counter() - began
        progress.step += 1
        progress.rows += self.rows_per_step
        progress.tokens += done.tokens
        progress.seconds += spent
        self.log(
            "step",
            step=progress.step,
            loss=done.loss,
            lr=self.rate * self.share,
            **({"penalty": done.penalty} if self.driver.scheduled else {}),
            grad_norm=done.norm,
            tokens=progress.tokens,
            tokens_per_second=done.tokens / spent,
            memory=peak_memory(self.accelerator.device),
            **({"sent_bytes": self.device.taken()} if self.device else {}),
        )
        watch.check_rise(progress, done.loss, config.loss_limit)

    def _update(self) -> None:
        """The optimizer's step, with what the method does before and after it."""
        driver, optimizer = self.driver, self.optimizer
        driver.before_step()
        optim.decay_live(optimizer, self.tensors, driver.schedule.live())
        optimizer.step()
        driver.after_step()
        optim.forget(optimizer, self.tensors, driver.schedule.fresh())
        optimizer.zero_grad(set_to_none=True)

    def look(self) -> None:
        """After a step: evaluate and save where it is time. Raises: Stopped after a signal."""
        progress = self.progress
        ended = progress.step == self.total
        evaluates = ended or _due(progress.step, self.config.eval_steps)
        stop = self._stopping()
        if evaluates or stop or _due(progress.step, self.save_steps):
            watch.check_weights(self.tensors, progress, self.rate * self.share)
        if evaluates:
            self._evaluate()
        if stop or not self.goes_on or _due(progress.step, self.save_steps):
            self._save()
        if stop:
            raise self._stopped(stop)

    def _evaluate(self) -> None:
        """Measure the loss on the validation rows; without any, only that it is finite."""
        if not self.data.validation:
            if self.main and self.progress.step:  # weights may be finite, and what they give not
                some = self.data.train[: self.config.micro_batch_size]
                prepare.loss_of(self.base.model, some, self.name)
            return
        began = time.perf_counter()
        loss = accuracy = 0.0
        if self.main:
            loss, accuracy = prepare.held_out(self.base.model, self.data.validation, self.name)
        loss = agreed(self.accelerator, loss)
        progress = self.progress
        progress.seconds += time.perf_counter() - began
        progress.last_eval = loss
        if progress.first_eval is None:
            progress.first_eval = loss
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.waited = loss, progress.step, 0
            if self.config.early_stopping_patience:
                state = adapter_state(self.base.model, self.name)
                self.best = {k: t.detach().cpu().clone() for k, t in state.items()}
        else:
            progress.waited += 1
        self.log(
            "eval",
            step=progress.step,
            loss=loss,
            perplexity=math.exp(min(loss, 700)),
            **({"accuracy": accuracy} if self.data.labels else {}),
        )

    def _save(self) -> None:
        if not self.main:
            return
        state = ckpt.Checkpoint(
            self.progress,
            adapter_state(self.base.model, self.name),
            optim.optimizer_state(self.optimizer, self.tensors),
            self.driver.state(),
            self.best,
            resume.origin_of(self),
        )
        path = ckpt.save(self.run.checkpoints, state, keep=self.config.keep_checkpoints)
        self.log("checkpoint", step=self.progress.step, path=path.name)

    # -- beginning and end ------------------------------------------------------------------

    def begin(self) -> None:
        again = self.progress.step > 0
        self.log("resume" if again else "start", step=self.progress.step, total=self.total)
        for line in [str(self.count), *self.notices]:
            self.log("line", text=line)
        if not again:
            self._evaluate()

    def finish(self) -> Result:
        model, progress = self.base.model.eval(), self.progress
        trained, printed = {name: self.tensors[name] for name in self.start}, len(self.notices)
        self.notices += watch.check_moved(self.start, trained, self.driver.schedule.live())
        self.notices += watch.notices_of_rise(progress, self.best, self.config.init_from)
        self.notices += watch.notices_of_standstill(
            losses_of(self.run.folder),
            optim.persistence(self.optimizer),
            self.rate,
            prepare.own_rate(self.config),
        )
        self.notices += self.device.settle() if self.device else []
        if self.best is not None and progress.best_step < progress.step:
            load_adapter_state(model, self.best, self.name, source="the best checkpoint")
            self.notices.append(f"the adapter is that of step {progress.best_step}, the best one")
        kept = progress.best_step if self.best is not None else progress.step
        self.notices += [*self.driver.unfinished(kept), *peft_notices(model, self.name)]
        for line in self.notices[printed:]:
            self.log("line", text=line)
        results = figures(
            progress,
            self.data,
            model,
            method=self.method.name,
            kept=kept,
            notices=self.notices,
            trained=self.count.trainable,
            schedule=self.driver.schedule,
            folder=self.run.folder,
            peak_memory_bytes=peak_memory(self.accelerator.device),
        )
        if self.main:
            save(
                model,
                self.run.adapter,
                self.name,
                tokenizer=self.base.tokenizer,
                base_path=prepare.lasting(self.config.base),
                prompt_format=self.data.prompt_format,
                labels=self.data.labels,
                with_tokenizer=bool(self.config.data.add_tokens),
                trained=card_rows(self.config, self.data, results, self.rate),
                warn=False,
            )
            commit.write_json(self.run.folder / RESULTS, results)
            self.log("end", step=progress.step)
            draw(self.run.folder)
            if ranks := results.get("ranks"):
                draw_ranks(ranks, self.run.folder / RANKS)
        self.accelerator.wait_for_everyone()
        return Result(self.run.folder, results, self.notices)

    def say(self, *lines: str) -> None:
        """A named line that belongs to the step, and to the results."""
        self.notices += lines
        for line in lines:
            self.log("line", text=line)

    def _waited_enough(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.progress.waited >= patience

    def _stopping(self) -> int:
        """The signal that some process has received; 0: none."""
        return int(agreed(self.accelerator, self.signals.received))

    def _stopped(self, number: int) -> Stopped:
        return Stopped(
            f"stopped by {signal.Signals(number).name}; everything is saved.",
            step=f"{self.progress.step} of {self.total}",
            signal=number,
            fix=f"go on with: lorica train --resume {self.run.folder}",
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
