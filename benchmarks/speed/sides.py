"""What is compared. A side is built in its own process, and then asked for steps.

A side that works on padded batches with all logits, as a plain loop does, can be compared with the
floor; one "as shipped" takes the rows and does what its library does with them.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed import work
from benchmarks.speed.work import Row, Shape

Tensors = dict[str, Any]
STATUS = Path("/proc/self/status")


def held(key: str) -> int:
    """Bytes that the process holds ("VmRSS"), or held at most ("VmHWM")."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


@dataclass(frozen=True)
class Side:
    """kind: a name of KINDS. settings: what it is given. rows: which batches: "same" is one batch
    of 8, again and again; "random" are six; "grouped" six of rows of like length."""

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    rows: str = "same"
    batch: int = 8
    shape: dict[str, int] = field(default_factory=dict)
    gate: str = ""
    """Sides with the same word here must give the same loss and gradients."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def batches(self) -> list[list[Row]]:
        many = work.rows(400)
        if self.rows == "grouped":
            return work.grouped(many, self.batch, 6)
        count = 1 if self.rows == "same" else 6
        return [many[i * self.batch : (i + 1) * self.batch] for i in range(count)]

    def build(self) -> "Work":
        return KINDS[self.kind](self)


class Work:
    """A model that can take steps.

    learned: its trained tensors by names that all libraries share: "<layer>.a", ".b", ".m".
    held: bytes that the process holds with the base alone.
    """

    def __init__(self, side: Side):
        import torch

        self.torch, self.side = torch, side
        self.rows = side.batches()
        self.model: Any = Shape(**side.shape).model(side.dtype)
        self.held = held("VmRSS")
        self.learned: Tensors = {}
        self.optimizer: Any = None

    def optimise(self, learned: Tensors, **options: Any) -> None:
        self.learned = learned
        self.optimizer = self.torch.optim.AdamW(learned.values(), lr=1e-4, **options)

    def loss(self, i: int) -> Any:
        """Of batch i, a mean over its label tokens."""
        return self.model(**work.padded(self.rows[i]), use_cache=False).loss

    def step(self, i: int) -> None:
        self.loss(i).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gate(self) -> tuple[float, Tensors]:
        """The loss of the first batch and its gradients, from given adapters without dropout."""
        torch = self.torch
        with torch.no_grad():
            for name, tensor in self.learned.items():
                draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                drawn = torch.randn(tensor.shape, generator=draw)
                tensor.copy_(tensor * (1 + 0.05 * drawn) if name.endswith(".m") else 0.02 * drawn)
        self.model.eval()
        loss = self.loss(0)
        loss.backward()
        found = {name: t.grad.float().clone() for name, t in self.learned.items()}
        self.optimizer.zero_grad()
        self.model.train()
        return loss.item(), found


class Floor(Work):
    """The frozen base, forward and backward to its inputs."""

    def __init__(self, side: Side):
        super().__init__(side)
        self.model.requires_grad_(False)

    def step(self, i: int) -> None:
        batch = work.padded(self.rows[i])
        vectors = self.model.get_input_embeddings()(batch.pop("input_ids"))
        vectors.requires_grad_()
        self.model(inputs_embeds=vectors, **batch, use_cache=False).loss.backward()


class Full(Work):
    def __init__(self, side: Side):
        super().__init__(side)
        self.optimise(dict(self.model.named_parameters()))


class Lorica(Work):
    """Lorica's adapter in a plain loop."""

    def __init__(self, side: Side):
        import lorica
        from lorica.core.condition import informed
        from lorica.core.state import adapter_state

        super().__init__(side)

        if kind := side.settings.get("quantisation"):
            quantise(self.model, kind)
        others = ("name", "quantisation", "shared")
        chosen = {k: v for k, v in side.settings.items() if k not in others}
        self.conditions = [f"task {i}" for i in range(side.batch)]
        method = lorica.method(side.settings["name"], **chosen)
        told = self.conditions if side.settings["name"] == "hyperlora" else None
        lorica.adapt(self.model, informed(method, self.model, told) if told else method)
        state = {k: t for k, t in adapter_state(self.model).items() if t.requires_grad}
        self.optimise({re.sub(r"\.adapters\.default", "", k): t for k, t in state.items()},
                      fused=True)  # fmt: skip
        self.told = told
        self.driver = lorica.Driver(self.model, total=1000)

    def loss(self, i: int) -> Any:
        if self.told:
            from lorica.core.condition import set_conditions

            set_conditions(self.model, self.told)
        return super().loss(i)

    def step(self, i: int) -> None:
        (self.loss(i) + self.driver.penalty()).backward()
        self.driver.before_step()
        self.optimizer.step()
        self.driver.after_step()
        self.optimizer.zero_grad()


class LoricaTrainer(Lorica):
    """Lorica's own step: rows laid end to end, the head on label tokens alone, clipping."""

    def __init__(self, side: Side):
        super().__init__(side)
        from accelerate import Accelerator

        from lorica.data.tokenise import Example
        from lorica.training.step import Part, Stepper

        self.stepper = Stepper(
            Accelerator(cpu=True), self.model, packed=True,
            shared=bool(side.settings.get("shared")), pad_id=0,
        )  # fmt: skip
        examples = [
            [Example(row.ids, [i >= row.answer for i in range(len(row.ids))], "row")
             for row in batch] for batch in self.rows
        ]  # fmt: skip
        self.parts = [Part(rows, side.batch, self.learned, 1.0, self.driver.penalty)
                      for rows in examples]  # fmt: skip

    def step(self, i: int) -> None:
        from lorica.base.packing import packed

        with packed(self.model):
            self.stepper([self.parts[i]])
        self.driver.before_step()
        self.optimizer.step()
        self.driver.after_step()
        self.optimizer.zero_grad()


class Peft(Work):
    """PEFT's adapter in a plain loop."""

    def __init__(self, side: Side):
        import peft

        super().__init__(side)
        settings = dict(side.settings)
        kind = getattr(peft, settings.pop("config"))
        config = kind(target_modules="all-linear", task_type="CAUSAL_LM", **settings)
        self.adaptive = kind is peft.AdaLoraConfig
        self.model = peft.get_peft_model(self.model, config)
        self.steps = 0
        words = {"lora_A": "a", "lora_B": "b", "lora_E": "e", "lora_magnitude_vector": "m"}
        learned = {}
        for name, tensor in self.model.named_parameters():
            if tensor.requires_grad:
                layer, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
                learned[f"{layer}.{words['lora_' + rest.partition('.')[0]]}"] = tensor
        self.optimise(learned)

    def step(self, i: int) -> None:
        self.loss(i).backward()
        self.optimizer.step()
        if self.adaptive:
            self.steps += 1
            self.model.base_model.update_and_allocate(self.steps)
        self.optimizer.zero_grad()


def quantise(model: Any, kind: str) -> None:
    """Pack the linear layers of the blocks. In place."""
    from lorica.base.quantise import quantise as pack
    from lorica.core.site import sites_of

    for site in sites_of(model):
        if not site.is_head:
            layer = pack(site.module, kind)
            layer.like = layer.like.to(site.like.dtype)
            model.set_submodule(site.name, layer)


KINDS: dict[str, Callable[[Side], Work]] = {
    "floor": Floor, "full": Full, "lorica": Lorica, "lorica trainer": LoricaTrainer, "peft": Peft,
}  # fmt: skip
