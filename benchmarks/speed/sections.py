"""What is compared with what."""

from dataclasses import dataclass, replace

from benchmarks.speed import peers
from benchmarks.speed.sides import Side

PEFT = {"config": "LoraConfig", "r": 16, "lora_alpha": 32}
LORA = {"name": "lora", "r": 16}
ADALORA = {
    "config": "AdaLoraConfig",
    "init_r": 16,
    "target_r": 8,
    "lora_alpha": 32,
    "tinit": 20,
    "tfinal": 500,
    "deltaT": 10,
    "total_step": 1000,
}


@dataclass(frozen=True)
class Section:
    """how: what the page says about it. over: the sides that the others are compared with.
    in_pairs: each side is measured against the last of `over` that stands before it, alone.
    is_time: ratios are of time, not of speed. together: the sides are in one process, whose heap
    keeps its pages: none pays for memory that it takes from the system, and one step follows
    another as closely as it can."""

    how: str
    sides: list[Side]
    over: tuple[str, ...]
    in_pairs: bool = False
    is_time: bool = False
    together: bool = False

    def some(self, dtype: str, names: list[str] | None) -> "Section":
        """With the sides of these names (None: all), computed in `dtype`."""
        sides = [replace(s, dtype=dtype) for s in self.sides if names is None or s.name in names]
        return replace(self, sides=sides)

    def missing(self) -> list[str]:
        """Sides whose library is not installed."""
        return [side.name for side in self.sides if peers.interpreter(side.peer) is None]


SAME = Section(
    "Every side gets the same padded batch of 8 rows (of median length), computes head and loss at "
    "every position, and uses AdamW. The floor is the frozen base alone: its forward pass, and its "
    "backward pass to its inputs. Before timing, sides that do the same work must give the same "
    "loss and the same gradients, from the same weights and with B away from zero. All sides are "
    "in one process, whose memory is reserved before the first of them is timed.",
    [
        Side("floor", "floor"),
        Side("LoRA", "lorica", LORA, gate="lora"),
        Side("PEFT LoRA", "peft", PEFT, gate="lora"),
        Side("LoRA, dropout", "lorica", {**LORA, "dropout": 0.05}, gate="lora"),
        Side("PEFT LoRA, dropout", "peft", {**PEFT, "lora_dropout": 0.05}, gate="lora"),
        Side("DoRA", "lorica", {**LORA, "name": "dora"}, gate="dora"),
        Side("PEFT DoRA", "peft", {**PEFT, "use_dora": True}, gate="dora"),
        Side("DoRA, dropout", "lorica", {**LORA, "name": "dora", "dropout": 0.05}, gate="dora"),
        Side(
            "PEFT DoRA, dropout",
            "peft",
            {**PEFT, "use_dora": True, "lora_dropout": 0.05},
            gate="dora",
        ),
        Side("AdaLoRA", "lorica", {"name": "adalora", "r": 16, "target_r": 8}),
        Side("PEFT AdaLoRA", "peft", ADALORA),
        Side("HyperLoRA, 8 conditions", "lorica", {"name": "hyperlora", "r": 16}),
        Side("LoRA on NF4", "lorica", {**LORA, "quantisation": "nf4"}),
        Side(
            "LoRA on NF4, weights kept unpacked",
            "lorica",
            {**LORA, "quantisation": "nf4", "unpacked": True},
        ),
        Side("full fine-tuning", "full"),
    ],
    over=("floor",),
    is_time=True,
    together=True,
)
PLAIN = Side("PEFT, plain loop", "peft", PEFT, rows="random")
OURS = Side("Lorica", "lorica trainer", {**LORA, "shared": True}, rows="random")
SHIPPED = Section(
    "48 rows, LoRA of rank 16 on all linear layers of the blocks, 8 rows per optimizer step. Each "
    "library uses its defaults for batching, for the positions that pass the head, and for the "
    "rest of a step. PEFT has no trainer: its side is a plain loop, on rows in random order and on "
    "rows grouped by length. TRL is its SFTTrainer, which turns gradient checkpointing on. LitGPT "
    "processes one row at a time and also learns the prompts. torchtune processes two rows at a "
    "time, with checkpointing, as in its recipe for one device. These three compute in bfloat16 by "
    "default; here they are set to float32. Lorica is the step of its trainer, without the event "
    "log and the learning rate schedule.",
    [
        PLAIN,
        Side("PEFT, rows grouped by length", "peft", PEFT, rows="grouped"),
        Side("TRL, bf16=False", "trl", {"bf16": False}, rows="random", peer="trl"),
        Side("LitGPT, 32-true", "litgpt", {"precision": "32-true"}, rows="random", peer="litgpt"),
        Side("torchtune, float32", "torchtune", rows="random", peer="torchtune"),
        Side("Lorica, shared prefixes off", "lorica trainer", LORA, rows="random"),
        OURS,
    ],
    over=("PEFT, plain loop", "PEFT, rows grouped by length"),
)
MIXED = Section(
    "As above, but TRL, LitGPT and torchtune use their default precision, bfloat16 (the first two "
    "under autocast), even if the processor has no bfloat16 instructions. The others use float32.",
    [
        PLAIN,
        Side("TRL", "trl", rows="random", peer="trl"),
        Side("LitGPT", "litgpt", {"precision": "bf16-mixed"}, rows="random", peer="litgpt"),
        Side("torchtune", "torchtune", dtype="bfloat16", rows="random", peer="torchtune"),
        OURS,
    ],
    over=("PEFT, plain loop",),
)
SIZES = {"rows": (4, 8, 16), "layers": (4, 8, 16), "adapters": (1, 2, 4)}
SCALING = Section(
    "Lorica's own step, LoRA of rank 16 on all linear layers, shared prefixes off. One size "
    "changes; the others stay at 8 rows, 8 layers and 1 adapter. The size of a batch is its number "
    "of real tokens. Several adapters act at once, and all of them train. The deviation is that of "
    "the worst of the three points from the least-squares line through them, as a share of its "
    "value.",
    [
        *(Side(f"{n} rows", "lorica trainer", LORA, batch=n) for n in SIZES["rows"]),
        *(
            Side(f"{n} layers", "lorica trainer", LORA, shape={"layers": n})
            for n in SIZES["layers"]
        ),
        *(
            Side(f"{n} adapters", "lorica trainer", {**LORA, "adapters": n})
            for n in SIZES["adapters"]
        ),
    ],
    over=(),
)
SMALL = {"layers": 6, "width": 256, "mlp": 688, "heads": 4, "vocabulary": 2048}
SOLO = tuple(
    f"{what}, one after another"
    for what in ("1 row a step", "4 rows a step", "small model, 1 row a step")
)
EACH = Section(
    "Eight LoRAs of rank 16, each with its own rows: eight runs one after another, and one pass "
    "over one base (`lorica train --each`). The small model has 6 layers of width 256 and a "
    "vocabulary of 2,048. When the rows of one run already keep the processor busy, there is "
    "little to gain.",
    [
        Side(SOLO[0], "lorica trainer", LORA, rows="eight", batch=1),
        Side("1 row a step, at once", "lorica each", {"r": 16}, rows="eight", batch=1),
        Side(SOLO[1], "lorica trainer", LORA, rows="eight", batch=4),
        Side("4 rows a step, at once", "lorica each", {"r": 16}, rows="eight", batch=4),
        Side(SOLO[2], "lorica trainer", LORA, rows="eight", batch=1, shape=SMALL),
        Side(
            "small model, 1 row a step, at once",
            "lorica each",
            {"r": 16},
            rows="eight",
            batch=1,
            shape=SMALL,
        ),
    ],
    over=SOLO,
    in_pairs=True,
)
SECTIONS = {
    "same work": SAME,
    "as shipped": SHIPPED,
    "as shipped, mixed precision": MIXED,
    "scaling": SCALING,
    "at once": EACH,
}
