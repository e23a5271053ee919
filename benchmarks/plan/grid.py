"""The 30 runs: every method, three bases, two batch sizes, with checkpointing and without, nf4."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One run. base: its name in bases.py. settings: of the recipe."""

    base: str
    method: str
    rows: int = 8
    """micro_batch_size"""
    checkpointing: bool = False
    quantisation: str | None = None
    method_settings: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [self.base, self.method]
        words += [f"r={r}"] if (r := self.method_settings.get("r")) else []
        words += [f"{self.rows} rows"]
        words += ["checkpointing"] if self.checkpointing else []
        words += [self.quantisation] if self.quantisation else []
        return " ".join(words)

    def recipe(self) -> dict[str, Any]:
        """Its settings, without base, data and output."""
        return {
            "method": {"name": self.method, **self.method_settings},
            "micro_batch_size": self.rows,
            "gradient_checkpointing": self.checkpointing,
            "quantisation": self.quantisation,
            "epochs": 1,
            "save_steps": 1000,  # no checkpoint between two steps, whose time is taken
            **self.settings,
        }


CASES: tuple[Case, ...] = (
    Case("260K", "lora"),
    Case("260K", "lora", 2),
    Case("260K", "full"),
    Case("260K", "hyperlora"),
    Case("260K", "prefix_tuning", checkpointing=True),
    Case("5M", "lora"),
    Case("5M", "lora", quantisation="nf4"),
    Case(
        "5M",
        "alora",
        2,
        method_settings={"r": 1, "rounds": 1, "first_round": 8},
        settings={
            "target_modules": ["q_proj", "v_proj"]
        },  # a round tries every rank of every layer
    ),
    Case("5M", "aflora"),
    Case("5M", "blora"),
    Case("5M", "double_lora", checkpointing=True),
    Case("5M", "lora_fa", 2),
    Case("5M", "dora_dynamic"),
    Case("5M", "ia3", quantisation="nf4", checkpointing=True),
    Case("58M", "lora"),
    Case("58M", "lora", 2),
    Case("58M", "lora", checkpointing=True),
    Case("58M", "lora", quantisation="nf4"),
    Case("58M", "lora", 2, checkpointing=True, quantisation="nf4"),
    Case("58M", "lora", method_settings={"r": 64}),
    Case("58M", "full", 2),
    Case("58M", "full", checkpointing=True),
    Case("58M", "dora"),
    Case("58M", "adalora", 2),
    Case("58M", "mora"),
    Case("58M", "vera", checkpointing=True),
    Case("58M", "bottleneck"),
    Case("58M", "llama_adapter"),
    Case("58M", "prompt_tuning", 2),
    Case("58M", "hyperlora", quantisation="nf4"),
)
"""The table, on whose runs the constants of lorica.plan.memory were chosen."""
OTHERS: tuple[Case, ...] = (
    Case("24M wide", "lora"),
    Case("24M wide", "dora", 2, checkpointing=True),
    Case("24M wide", "full"),
    Case("31M deep", "lora"),
    Case("31M deep", "lora", quantisation="nf4", checkpointing=True),
    Case("31M deep", "bottleneck", 2),
    Case("19M", "lora", 4),
    Case("19M", "lora", 8, checkpointing=True),
    Case("19M", "double_lora", 8, quantisation="nf4"),
    Case("19M", "full", 4, checkpointing=True),
)
"""Other shapes. Nothing was chosen on them, with one exception: that checkpointing leaves a hole
for each block showed on "31M deep". The base 19M was added after that, as a check."""
