"""Written cases: the edge of the flowchart that must decide in each situation."""

from dataclasses import replace

import pytest

from lorica.errors import ResourceError
from lorica.plan.choose.choice import choose
from lorica.plan.choose.flowchart import EDGES, walk
from lorica.plan.choose.rank import choose_rank
from lorica.plan.choose.situation import Base, Rows, Situation

GIB = 2**30

LLAMA_7B = Base(
    "llama-7b", 4096, 6_738_000_000, [(4096, 4096)] * 128 + [(4096, 11008), (11008, 4096)] * 32
)
"""32 blocks; the gate is left out, which changes no case."""
STORIES = Base(
    "stories260K",
    64,
    260_032,
    [(64, 64), (64, 32), (64, 32), (64, 64), (64, 172), (64, 172), (172, 64)] * 5,
)
ALPACA = Rows("alpaca", 52_000, 51_744, 256, 3_000_000, structure=0.65)


def peak_on_7b(settings):
    """Rough sizes: what a method, its weights and its rows at a time take."""
    method = settings["method"]
    weights = 14 if "quantisation" not in settings else 4.0
    rows = settings["micro_batch_size"] * (0.3 if "gradient_checkpointing" in settings else 2.0)
    more = {"full": 90, "hyperlora": 30, "adalora": 2, "dora": 1}.get(method["name"], 0)
    return int((weights + rows + more + method.get("r", 0) * 0.02) * GIB)


def on(gib, rows=ALPACA, base=LLAMA_7B, **more):
    memory = None if gib is None else int(gib * GIB)
    return Situation(rows, base, memory=memory, peak=peak_on_7b, device="card", **more)


def small(rows, **more):
    """On the smallest base everything fits."""
    return Situation(rows, STORIES, memory=24 * GIB, peak=lambda settings: 2**28, **more)


def with_rows(kind="prompt", tokens=30_000, **more):
    more.setdefault("structure", 0.65)
    return Rows(kind, 2_000, 1_900, 100, tokens, **more)


TASKS = {"en-de": 1000, "de-en": 1000}
CLASSES = {"pos": 1000, "neg": 1000}
TOPICS = {f"topic {i}": 100 for i in range(20)}
RANDOM = with_rows(structure=1.17)

CASES = {
    # memory
    "7B on 80 GiB": (on(80), "otherwise"),
    "7B on 24 GiB: fewer rows at a time are enough": (on(24), "otherwise"),
    "7B on 15 GiB: recomputed activations are enough": (on(15.9), "otherwise"),
    "7B on 12 GiB": (on(12), "extreme memory"),
    "7B on 6 GiB": (on(6), "extreme memory"),
    "7B without a limit": (on(None), "otherwise"),
    "7B on 12 GiB, several tasks": (on(12, replace(ALPACA, conditions=TASKS)), "extreme memory"),
    "7B on 12 GiB, forget less": (on(12, goal="forget-less"), "extreme memory"),
    # conditions
    "two tasks, all fits": (on(80, replace(ALPACA, conditions=TASKS)), "conditions"),
    "one task in all rows": (on(80, replace(ALPACA, conditions={"en-de": 9})), "otherwise"),
    "two tasks, no room for a network": (
        on(24, replace(ALPACA, conditions=TASKS)),
        "one adapter each",
    ),
    "two tasks, small": (small(with_rows(conditions=TASKS), goal="small"), "one adapter each"),
    "two tasks, for vLLM": (small(with_rows(conditions=TASKS), serve="vllm"), "conditions"),
    "two tasks and classes": (
        small(with_rows("label", 0, classes=CLASSES, conditions=TASKS)),
        "one adapter each",
    ),
    "two tasks, forget less": (
        small(with_rows(conditions=TASKS), goal="forget-less"),
        "conditions",
    ),
    # forgetting
    "forget less": (on(80, goal="forget-less"), "forgetting"),
    "forget less, for vLLM": (on(80, goal="forget-less", serve="vllm"), "forgetting"),
    # capacity
    "more text than any rank holds": (small(with_rows("text", 1_000_000)), "capacity"),
    "more text than any rank holds, for vLLM": (
        small(with_rows("text", 1_000_000), serve="vllm"),
        "otherwise",
    ),
    "more text than any rank holds, fast": (
        small(with_rows("text", 1_000_000), goal="fast"),
        "otherwise",
    ),
    "7B, more text than any rank holds, full does not fit": (
        on(80, with_rows("text", 9 * 10**9)),
        "otherwise",
    ),
    # unknown budget
    "two classes": (small(with_rows("label", 0, classes=CLASSES)), "otherwise"),
    "twenty classes": (small(with_rows("label", 0, classes=TOPICS)), "budget unknown"),
    "twenty classes, fast": (
        small(with_rows("label", 0, classes=TOPICS), goal="fast"),
        "otherwise",
    ),
    # expressiveness
    "random answers": (small(RANDOM), "memorising"),
    "random answers, for llama.cpp": (small(RANDOM, serve="llamacpp"), "otherwise"),
    "random answers, too few to tell": (small(replace(RANDOM, structure=None)), "otherwise"),
    "small, and much to learn": (small(with_rows(), goal="small"), "expressiveness"),
    "small, and much to learn, for vLLM": (
        small(with_rows(), goal="small", serve="vllm"),
        "otherwise",
    ),
    "small, and little to learn": (small(with_rows(tokens=2_000), goal="small"), "otherwise"),
    "fast": (small(with_rows(), goal="fast"), "otherwise"),
    # otherwise
    "tiny data": (on(80, Rows("prompt", 20, 19, 1, 400)), "otherwise"),
    "conversations": (on(80, with_rows("messages", 500_000)), "otherwise"),
    "little plain text": (small(with_rows("text", 20_000)), "otherwise"),
}


@pytest.mark.parametrize(("situation", "edge"), CASES.values(), ids=CASES)
def test_the_edge_decides(situation, edge):
    assert choose(situation).edge.name == edge


def test_every_edge_decides_in_a_case():
    assert len(CASES) >= 25
    assert {edge for _, edge in CASES.values()} == {edge.name for edge in EDGES}


@pytest.mark.parametrize("situation", [case for case, _ in CASES.values()], ids=CASES)
def test_the_path_ends_in_the_edge_that_decides(situation):
    path = walk(situation, choose_rank(situation))
    assert [reason.value for reason in path.reasons] == [False] * (len(path.reasons) - 1) + [True]
    assert all(reason.why for reason in path.reasons)


def test_memory_changes_come_in_order():
    """Fewer rows at a time, recomputed activations, 4-bit weights, a lower rank."""
    settings = {gib: choose(on(gib)).settings for gib in (80, 24, 15.9, 12, 4.8)}
    assert settings[80]["micro_batch_size"] == 8
    assert settings[24]["micro_batch_size"] == 4
    assert "gradient_checkpointing" not in settings[24]
    assert settings[15.9]["gradient_checkpointing"]
    assert settings[15.9]["micro_batch_size"] == 2, "the most rows that fit"
    assert "quantisation" not in settings[15.9]
    assert settings[12]["quantisation"] == "nf4"
    assert "gradient_checkpointing" not in settings[12]
    rows = [
        s["micro_batch_size"] * s.get("gradient_accumulation_steps", 1) for s in settings.values()
    ]
    assert rows == [8] * 5, "the update stays the same"


def test_the_rank_falls_last():
    rows = replace(ALPACA, label_tokens=200_000_000)
    full, tight = choose(on(80, rows)), choose(on(5.2, rows))
    assert tight.settings["method"]["r"] < full.settings["method"]["r"]
    assert tight.settings["quantisation"] == "nf4" and tight.settings["gradient_checkpointing"]
    assert tight.settings["method"]["alpha"] == 2 * tight.settings["method"]["r"]


def test_nothing_fits():
    with pytest.raises(ResourceError, match=r"no training of llama-7b fits: card has 4.0 GiB"):
        choose(on(4))


def test_conditions_with_4_bit_weights_have_one_adapter_each():
    choice = choose(on(12, replace(ALPACA, conditions=TASKS)))
    assert choice.each and choice.method == "lora"


def test_a_small_base_leaves_full_fine_tuning_open():
    """In our studies its loss was below LoRA's. On a large base, or where it does not fit, no."""
    here = small(with_rows())
    doubts = {reason.what for reason in choose(here).doubts}
    assert "lora or full" in doubts
    too_large = choose(on(80, with_rows())).doubts
    does_not_fit = choose(
        replace(here, peak=lambda s: 2**50 if s["method"]["name"] == "full" else 1)
    )
    assert not any("full" in reason.what for reason in [*too_large, *does_not_fit.doubts])
