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
    """how: what the page says of it. over: the sides that the others are measured against.
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
    "The same padded batch of 8 rows (of median size), the head and the loss on every position, "
    "AdamW. Before anything is timed, sides that do the same work show that they do: from the same "
    "weights, with B away from zero, the same loss and the same gradients. All sides are in one "
    "process, whose heap has its pages before the first of them is timed.",
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
            "LoRA on NF4, kept unpacked",
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
    "48 rows, LoRA of rank 16 on all linear layers of the blocks, 8 rows an optimizer step; how "
    "they are batched, which positions meet the head, and what else a step does is each "
    "library's default. PEFT has no trainer of its own: its loop is the plain one, on rows in "
    "random order and on rows of like length. TRL is its SFTTrainer, with the gradient "
    "checkpointing that it turns on; LitGPT takes its rows one by one, and learns prompts too; "
    "torchtune two by two, with checkpointing, as its recipe for one device. All three compute in "
    "bfloat16 by default; here they are told not to. Lorica's is the step of its "
    "trainer, without the log and the schedule of the learning rate.",
    [
        PLAIN,
        Side("PEFT, rows of like length", "peft", PEFT, rows="grouped"),
        Side("TRL, bf16=False", "trl", {"bf16": False}, rows="random", peer="trl"),
        Side("LitGPT, 32-true", "litgpt", {"precision": "32-true"}, rows="random", peer="litgpt"),
        Side("torchtune, float32", "torchtune", rows="random", peer="torchtune"),
        Side("Lorica, no beginnings shared", "lorica trainer", LORA, rows="random"),
        OURS,
    ],
    over=("PEFT, plain loop", "PEFT, rows of like length"),
)
MIXED = Section(
    "As above, but TRL, LitGPT and torchtune in the precision that they choose by themselves, "
    "bfloat16 (the first two under autocast), also where the processor has no instructions for "
    "it; the others in float32.",
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
    "Lorica's own step, LoRA of rank 16 on all linear layers, beginnings not shared; one size "
    "changes, the others are 8 rows, 8 layers, 1 adapter. Sizes of the batch are its real "
    'tokens; adapters act all at once, and all learn. "Off the line" is how far the worst of the '
    "three is from the straight line through them (least squares), as a share of its value.",
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
    "Eight LoRAs of rank 16, each with rows of its own: eight runs one after another, and one pass "
    "over one base (`lorica train --each`). The small model has 6 layers of width 256 and 2,048 "
    "words. Where one run's rows fill the processor already, there is little to gain.",
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
