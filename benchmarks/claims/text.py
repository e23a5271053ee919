"""The text task: a base of TinyStories learns from Shakespeare, and forgets or does not.

Base: stories260K, a Llama of 260,032 parameters. Rates are chosen by the loss on a validation
text; the reported runs are measured on a test text that no choice has seen. The rise of the loss
on TinyStories is what was forgotten. Losses are nats per token.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.claims.claim import TUNING, Place, Run

STEPS, QUICK_STEPS = 200, 8
LENGTH, BATCH = 128, 8
WATCHED = 4
"""Checkpoints whose weights are looked at, evenly over the run, the last step included."""
STORIES = "data/text/tinystories-samples/minigpt_tinystories.txt"
PLAY = "data/text/tinyshakespeare/input.txt"
HELD, TRAINED_ON = 30_000, 450_000  # characters
WORDS = (
    f"stories260K is trained on tinyshakespeare: {STEPS} steps of {BATCH} x {LENGTH} tokens, all "
    "linear layers but the head (where the method acts on linear layers), cosine schedule, 10 % "
    "warm-up, AdamW. Loss is measured on a test text, in nats per token"
)


def write(place: Place) -> None:
    """Cut the texts, once for all runs."""
    play = (place.shared / PLAY).read_text()
    stories = (place.shared / STORIES).read_text()
    short = 10 if place.quick else 1
    size, held = TRAINED_ON // short, HELD // short
    for name, text in (
        ("train", play[:size]),
        ("valid", play[-2 * HELD :][:held]),
        ("test", play[-HELD:][:held]),
        ("stories", stories[:held]),
    ):
        path = place.folder / f"{name}.jsonl"
        path.write_text(json.dumps({"text": text}) + "\n")


def run(
    settings: dict[str, Any], rate: float, seed: int, also: tuple[str, ...], place: Place
) -> Run:
    """Train once and measure.

    settings: method, and what else the run sets. also: "curve" (loss by steps), "turns" (what
    became of the weights).
    """
    import torch

    torch.set_num_threads(1)
    import lorica
    from benchmarks.claims import variants
    from lorica.errors import TrainingError

    assert variants  # its methods are known by name from here on
    steps = QUICK_STEPS if place.quick else STEPS
    every = max(steps // 20, 1)
    held = "valid" if seed == TUNING else "test"
    data = {
        "path": str(place.folder / "train.jsonl"),
        "max_length": LENGTH,
        "overlong": "split",
        "validation": str(place.folder / f"{held}.jsonl"),
    }
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        output = Path(folder) / "run"
        try:
            result = lorica.train(
                base=str(place.shared / "data/models/stories260K"),
                output=str(output),
                data=data,
                learning_rate=rate,
                seed=seed,
                max_steps=steps,
                warmup_ratio=0.1,
                micro_batch_size=BATCH,
                save_steps=steps // WATCHED if "turns" in also else steps,
                keep_checkpoints=WATCHED,
                show=False,
                **({"eval_steps": every} if "curve" in also else {}),
                **settings,
            )
        except TrainingError as error:  # a rate that is too high: the run says so and ends
            return {"seed": seed, "score": None, "stopped": error.what}
        losses = result.figures["held_out_loss"]
        found: Run = {
            "seed": seed,
            "score": losses["after"],
            "loss": losses["after"],
            "loss_before": losses["before"],
            "trained": result.figures["parameters"]["trained"],
        }
        if seed != TUNING:
            found |= looked_at(output, also, place)
    return found


def looked_at(output: Path, also: tuple[str, ...], place: Place) -> Run:
    """What else a reported run came to."""
    import lorica
    from lorica.core.state import load_adapter_state
    from lorica.data.config import DataConfig
    from lorica.data.load import load_data as load_rows
    from lorica.evaluation.loss import mean_loss
    from lorica.evaluation.weight_changes import correlation, weight_changes
    from lorica.formats.commit import read_tensors
    from lorica.formats.open_adapter import open_adapter
    from lorica.training.run import by_step, read_events

    opened = open_adapter(output)
    config = DataConfig(
        path=str(place.folder / "stories.jsonl"), max_length=LENGTH, validation=0, overlong="split"
    )
    rows = load_rows(config, opened.tokenizer, seed=0, max_length=opened.max_length).train
    after = mean_loss(opened.model, rows)
    with lorica.use(opened.model):
        found: Run = {"forgotten": after - mean_loss(opened.model, rows)}
    if "curve" in also:
        found["steps"], found["losses"] = by_step(read_events(output), "eval", "loss")
    if "turns" in also:
        seen = []
        for checkpoint in sorted((output / "checkpoints").iterdir()):
            load_adapter_state(opened.model, read_tensors(checkpoint / "adapter.safetensors"))
            seen += weight_changes(opened.model)
        attention = [t for t in seen if t.site.endswith(("q_proj", "v_proj"))]
        found |= {"all_sites": correlation(seen), "query_value": correlation(attention)}
    return found
