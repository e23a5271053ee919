"""What is compared. A side is built in its own process, and then asked for steps.

A side that works on padded batches with all logits, as a plain loop does, can be compared with the
floor; one "as shipped" takes the rows and does what its library does with them.
"""

import ctypes
import zlib
from dataclasses import asdict, dataclass, field
from importlib import import_module
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


def give_back() -> None:
    """Return the free pages of glibc's heap to the system: what is held then is in use."""
    ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Side:
    """kind: a name of KINDS. settings: what it is given. rows: which batches: "same" is one, of
    median size, again and again; "random" are six; "grouped" six of rows of like length; "eight"
    are eight, for as many runs."""

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    rows: str = "same"
    batch: int = 8
    shape: dict[str, int] = field(default_factory=dict)
    gate: str = ""
    """Sides with the same word here must give the same loss and gradients."""
    peer: str = ""
    """In whose environment it runs; "" is ours."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def batches(self) -> list[list[Row]]:
        many = work.rows(400, vocabulary=Shape(**self.shape).vocabulary)
        if self.rows == "grouped":
            return work.grouped(many, self.batch, 6)
        if self.rows == "same":
            return [work.middle(many, self.batch)]
        count = {"random": 6, "eight": 8}[self.rows]
        return [many[i * self.batch : (i + 1) * self.batch] for i in range(count)]

    def build(self) -> "Work":
        module, _, name = KINDS[self.kind].partition(":")
        return getattr(import_module(f"benchmarks.speed.{module}"), name)(self)


class Work:
    """A model that can take steps.

    learned: its trained tensors by names that all libraries share: "<layer>.a", ".b", ".m".
    start: those of them that begin at the base's norms, before the first step.
    held: bytes that the process holds with the base alone.
    """

    def __init__(self, side: Side):
        import torch

        self.torch, self.side = torch, side
        self.rows = side.batches()
        self.model: Any = self.base(Shape(**side.shape))
        give_back()
        self.held = held("VmRSS")
        self.learned: Tensors = {}
        self.start: Tensors = {}
        self.optimizer: Any = None

    def base(self, shape: Shape) -> Any:
        return shape.model(self.side.dtype)

    def optimise(self, learned: Tensors, **options: Any) -> None:
        self.learned = learned
        self.start = {n: t.detach().clone() for n, t in learned.items() if n.endswith(".m")}
        self.optimizer = self.torch.optim.AdamW(learned.values(), lr=1e-4, **options)

    def loss(self, i: int) -> Any:
        """Of batch i, a mean over its label tokens."""
        return self.model(**work.padded(self.rows[i]), use_cache=False).loss

    def step(self, i: int) -> None:
        self.loss(i).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def steps(self, count: int) -> None:
        """One on each of the first batches."""
        for i in range(count):
            self.step(i)

    def gate(self) -> tuple[float, Tensors]:
        """The loss of the first batch and its gradients, from given adapters without dropout."""
        torch = self.torch
        with torch.no_grad():
            for name, tensor in self.learned.items():
                draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                drawn = torch.randn(tensor.shape, generator=draw)
                start = self.start.get(name)
                tensor.copy_(0.02 * drawn if start is None else start * (1 + 0.05 * drawn))
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
        self.taken = 0
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
            self.taken += 1
            self.model.base_model.update_and_allocate(self.taken)
        self.optimizer.zero_grad()


KINDS = {
    "floor": "sides:Floor",
    "full": "sides:Full",
    "peft": "sides:Peft",
    "lorica": "ours:Lorica",
    "lorica trainer": "ours:LoricaTrainer",
    "lorica each": "ours:LoricaEach",
    "trl": "peers.trl:Trl",
    "litgpt": "peers.litgpt:LitGpt",
    "torchtune": "peers.torchtune:Torchtune",
}
"""Module and class; imported by the side's own process alone, which has what they import."""
