"""What articles and papers say, by study, and how the study tests it.

Five articles of 2023 and 2024 are meant; where one tells what a paper says, the paper is named.
"""

from dataclasses import dataclass

from benchmarks.studies.checks import Alike, Better, Check, Costs, SavesMoreMemory, Steady

LIGHTNING = "Lightning AI 2023, LLaMA-7B on an A100"
VARIANTS = "an article's table of variants"
FORGETS = "Biderman et al. 2024, arXiv:2405.09673"
PRACTICE = "an article's notes on practice"
RANKS = "an article's table of variants, on ranks"


@dataclass(frozen=True)
class Claim:
    """tests: all of them must hold."""

    says: str
    source: str
    tests: tuple[Check, ...]


LORA_RANKS = ("lora r=1", "lora r=4", "lora r=16", "lora r=64")

CLAIMS: dict[str, tuple[Claim, ...]] = {
    "articles-table": (
        Claim(
            "LoRA and LLaMA-Adapter need about as much memory (21 and 22 GB)",
            LIGHTNING,
            (Costs("memory", "llama_adapter", "lora", 0.9, 1.1),),
        ),
        Claim(
            "and about as much time (192 and 162 minutes)",
            LIGHTNING,
            (Costs("time", "llama_adapter", "lora", 0.8, 1.2),),
        ),
        Claim(
            "full fine-tuning needs more memory than one of their GPUs has",
            LIGHTNING,
            (Costs("memory", "full", "lora", 1), Costs("memory", "full", "llama_adapter", 1)),
        ),
        Claim(
            "and is 30 to 40 times as expensive",
            LIGHTNING,
            (Costs("time", "full", "lora", 30),),
        ),
        Claim(
            "an adapter is a small file beside a checkpoint (8 MB, 23 GB)",
            LIGHTNING,
            (Costs("file", "lora", "full", 0, 0.1), Costs("file", "llama_adapter", "full", 0, 0.1)),
        ),
        Claim(
            "training few of the parameters comes close to full fine-tuning",
            "an article on forgetting",
            (
                Alike("lora", "full", 0.05, "character_accuracy"),
                Alike("llama_adapter", "full", 0.05, "character_accuracy"),
            ),
        ),
    ),
    "learn-forget": (
        Claim("LoRA learns less", FORGETS, tuple(Better("full", name) for name in LORA_RANKS)),
        Claim(
            "LoRA forgets less",
            FORGETS,
            tuple(Better(name, "full", "forgotten") for name in LORA_RANKS),
        ),
        Claim("a higher rank learns more", FORGETS, (Better("lora r=64", "lora r=1"),)),
        Claim(
            "a higher rank forgets more",
            FORGETS,
            (Better("lora r=1", "lora r=64", "forgotten"),),
        ),
    ),
    "which-variant": (
        Claim(
            "QLoRA needs far less memory (an eighth, for the weights)",
            VARIANTS,
            (Costs("memory", "qlora", "lora", 0, 1),),
        ),
        Claim("and is about as good as LoRA", PRACTICE, (Alike("qlora", "lora"),)),
        Claim(
            "double LoRA (called DoRA there) learns more than LoRA",
            VARIANTS,
            (Better("double_lora", "lora"),),
        ),
        Claim(
            "and takes more time and memory",
            VARIANTS,
            (Costs("time", "double_lora", "lora", 1), Costs("memory", "double_lora", "lora", 1)),
        ),
        Claim(
            "DoRA learns more than LoRA at the same rank",
            "Liu et al. 2024, arXiv:2402.09353",
            (Better("dora", "lora"),),
        ),
        Claim(
            "AdaLoRA spends a budget better than LoRA",
            "Zhang et al. 2023, arXiv:2303.10512",
            (Better("adalora", "lora"),),
        ),
        Claim(
            "HyperLoRA, which is told the pair of languages, is better than one LoRA for all",
            VARIANTS,
            (Better("hyperlora", "lora"),),
        ),
        Claim(
            "MoRA learns more than LoRA of as many parameters",
            "Jiang et al. 2024, arXiv:2405.12130",
            (Better("mora", "lora"),),
        ),
        Claim(
            "LoRA comes close to full fine-tuning",
            VARIANTS,
            (Alike("lora", "full", 0.05, "character_accuracy"),),
        ),
    ),
    "ranks": (
        Claim("a low rank is enough for a simple task", RANKS, (Alike("lora r=8", "lora r=64"),)),
        Claim("a higher rank learns more", RANKS, (Better("lora r=64", "lora r=1"),)),
        Claim("a rank that is too large overfits", PRACTICE, (Better("lora r=8", "lora r=64"),)),
        Claim(
            "a higher rank takes more time and memory",
            RANKS,
            (
                Costs("time", "lora r=64", "lora r=1", 1),
                Costs("memory", "lora r=64", "lora r=1", 1),
            ),
        ),
        Claim(
            "DoRA is better than LoRA where the rank is limited",
            "Liu et al. 2024, arXiv:2402.09353",
            (Better("dora r=1", "lora r=1"),),
        ),
    ),
    "practice": (
        Claim("repeated runs are surprisingly consistent", PRACTICE, (Steady(),)),
        Claim("QLoRA saves memory", PRACTICE, (Costs("memory", "qlora", "lora r=8", 0, 1),)),
        Claim("and takes more time", PRACTICE, (Costs("time", "qlora", "lora r=8", 1),)),
        Claim("and is as good as LoRA", PRACTICE, (Alike("qlora", "lora r=8"),)),
        Claim(
            "a cosine schedule helps SGD noticeably",
            PRACTICE,
            (Better("sgd r=8", "sgd, constant rate"),),
        ),
        Claim(
            "and makes almost no difference with AdamW",
            PRACTICE,
            (Alike("lora r=8", "constant rate"),),
        ),
        Claim(
            "SGD in place of AdamW saves memory at a large rank, and little at a small one",
            PRACTICE,
            (SavesMoreMemory(("lora r=8", "sgd r=8"), ("lora r=64", "sgd r=64")),),
        ),
        Claim(
            "a second epoch makes the result worse", PRACTICE, (Better("lora r=8", "two epochs"),)
        ),
        Claim(
            "LoRA on all layers is better than on queries and values",
            PRACTICE,
            (Better("lora r=8", "q and v"),),
        ),
        Claim(
            "alpha is best at twice the rank",
            PRACTICE,
            (Better("lora r=8", "alpha = r"), Better("lora r=8", "alpha = 4 r")),
        ),
    ),
}
