"""Lorica's sides."""

from typing import Any

import torch

import lorica
from benchmarks.speed.sides import Side, Work
from lorica.base.packing import packed
from lorica.base.quantise import quantise as pack
from lorica.base.quantised_model import store_dequantised_layers
from lorica.core.condition import set_conditions
from lorica.core.site import hidden_size_of, sites_of
from lorica.core.state import adapter_state
from lorica.data.example import Example
from lorica.training.freed_memory import keep_freed_memory
from lorica.training.placement import Single
from lorica.training.step import StepInput, Stepper
from lorica.training.watch import check_finite

HERE = ("name", "quantisation", "unpacked", "shared", "adapters")
"""Settings that are read here; the others are the method's."""


class Lorica(Work):
    """Lorica's adapter in a plain loop; or several, which act together."""

    def __init__(self, side: Side):
        super().__init__(side)
        settings = side.settings
        if kind := settings.get("quantisation"):
            quantise(self.model, kind)
        if settings.get("unpacked"):
            store_dequantised_layers(self.model, 2**40)
        chosen = {k: v for k, v in settings.items() if k not in HERE}
        method = lorica.method(settings["name"], **chosen)
        hyper = settings["name"] == "hyperlora"
        self.conditions = [f"task {i}" for i in range(side.batch)] if hyper else None
        if self.conditions:
            method = method.for_conditions(self.conditions, hidden_size_of(self.model))
        names = ["default", *(f"other{i}" for i in range(1, settings.get("adapters", 1)))]
        for seed, name in enumerate(names):
            lorica.adapt(self.model, method, name=name, seed=seed)
        lorica.activate(self.model, *names)
        learned = {}
        for name in names:
            mark = "" if name == "default" else f"{name}:"
            state = adapter_state(self.model, name)
            learned |= {mark + k: t for k, t in state.items() if t.requires_grad}
        self.optimise(learned, fused=True)
        self.driver = lorica.Driver(self.model, total=1000)

    def loss(self, i: int) -> Any:
        if self.conditions:
            set_conditions(self.model, self.conditions)
        return super().loss(i)

    def step(self, i: int) -> None:
        (self.loss(i) + self.driver.penalty()).backward()
        self.update()

    def update(self) -> None:
        self.driver.before_step()
        self.optimizer.step()
        self.driver.after_step()
        self.optimizer.zero_grad()


class LoricaTrainer(Lorica):
    """Lorica's own step: rows laid end to end, the head on label tokens alone, clipping."""

    def __init__(self, side: Side):
        keep_freed_memory()  # as its trainer does
        super().__init__(side)
        self.stepper = Stepper(
            Single(torch.device("cpu")),
            self.model,
            packed=True,
            shared=bool(side.settings.get("shared")),
            pad_id=0,
        )
        self.examples = [
            [
                Example(row.ids, [i >= row.answer for i in range(len(row.ids))], "row")
                for row in batch
            ]
            for batch in self.rows
        ]

    def step(self, i: int) -> None:
        part = StepInput(self.examples[i], self.side.batch, self.learned, 1.0, self.driver.penalty)
        with packed(self.model):
            (done,) = self.stepper([part])
        check_finite(done.loss, done.norm, done.where, self.learned)
        self.update()


class LoricaEach(Work):
    """A LoRA for each batch, all trained in one pass over one base, as `train_each` does."""

    def __init__(self, side: Side):
        keep_freed_memory()
        super().__init__(side)
        self.parts: list[StepInput] = []
        for seed, batch in enumerate(self.rows):
            lorica.adapt(self.model, lorica.Lora(**side.settings), name=f"run_{seed}", seed=seed)
            rows = [
                Example(row.ids, [i >= row.answer for i in range(len(row.ids))], "row")
                for row in batch
            ]
            tensors: Any = adapter_state(self.model, f"run_{seed}")
            self.parts.append(StepInput(rows, side.batch, tensors, adapter=f"run_{seed}"))
        lorica.activate(self.model, *(str(part.adapter) for part in self.parts))
        self.stepper = Stepper(
            Single(torch.device("cpu")), self.model, packed=True, shared=False, pad_id=0
        )
        self.optimizers = [
            torch.optim.AdamW(part.tensors.values(), lr=1e-4, fused=True) for part in self.parts
        ]

    def steps(self, count: int) -> None:
        """One of every run, whatever `count` is: the step that warms the heap is as large as those
        that are timed."""
        with packed(self.model):
            done = self.stepper(self.parts)
        for one, part, optimizer in zip(done, self.parts, self.optimizers, strict=True):
            check_finite(one.loss, one.norm, one.where, part.tensors)
            optimizer.step()
            optimizer.zero_grad()


def quantise(model: Any, kind: str) -> None:
    """Pack the linear layers of the blocks. In place."""
    for site in sites_of(model):
        if not site.is_head:
            layer = pack(site.module, kind)
            layer.like = layer.like.to(site.like.dtype)
            model.set_submodule(site.name, layer)
