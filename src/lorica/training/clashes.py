"""Settings of a run that are right alone and wrong together."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorica.training.config import TrainConfig


def clashes(c: "TrainConfig") -> list[tuple[str, str]]:
    """Pairs of settings that are right alone and wrong together: (key, what)."""
    total, kept = c.max_steps, c.data.validation
    found = [
        (
            c.max_steps and c.epochs,
            "epochs",
            f"epochs is {c.epochs} and max_steps {c.max_steps}; give one of them",
        ),
        (
            not c.max_steps and not c.epochs,
            "epochs",
            "epochs and max_steps are both null; give one of them",
        ),
        (
            c.warmup_steps and c.warmup_ratio,
            "warmup_ratio",
            f"warmup_ratio is {c.warmup_ratio} and warmup_steps {c.warmup_steps}; give one of them",
        ),
        (
            total and c.warmup_steps >= total,
            "warmup_steps",
            f"warmup_steps is {c.warmup_steps} of max_steps {total}; nothing is left to train",
        ),
        (
            c.early_stopping_patience and not c.eval_steps,
            "early_stopping_patience",
            "early_stopping_patience needs eval_steps: without it the run is evaluated once",
        ),
        (
            c.eval_steps and kept == 0,
            "eval_steps",
            "eval_steps needs held-out rows, and data.validation is 0",
        ),
        (
            total and c.eval_steps and c.eval_steps > total,
            "eval_steps",
            f"eval_steps is {c.eval_steps}, more than max_steps {total}; it would never come",
        ),
        *_about_quantisation(c),
        (
            c.split and not c.peer,
            "peer",
            "a split run needs peer, the cloud's HOST:PORT",
        ),
        (c.peer and not c.split, "split", "peer is given, and split is not; say cloud or device"),
        (
            c.split and c.method["name"] != "lora",
            "split",
            f"split takes method lora, and the method is {c.method['name']}",
        ),
        (
            c.split and c.gradient_checkpointing,
            "gradient_checkpointing",
            "gradient_checkpointing would ask the device for every update twice; leave it out",
        ),
        (
            c.split and (c.modules_to_save or c.trainable_token_indices or c.data.add_tokens),
            "split",
            "split trains adapters of linear layers alone: no modules_to_save, no token rows",
        ),
        (
            c.active_share < 1 and not c.split,
            "active_share",
            "active_share belongs to a split run",
        ),
    ]
    return [(key, what) for wrong, key, what in found if wrong]


def _about_quantisation(c: "TrainConfig") -> list[tuple[Any, str, str]]:
    return [
        (
            not c.double_quantisation and c.quantisation not in ("nf4", "fp4"),
            "double_quantisation",
            "double_quantisation is false, and without quantisation nf4 or fp4 it says nothing",
        ),
        (
            c.quantisation and c.method["name"] == "full",
            "quantisation",
            f"quantisation is {c.quantisation}, and method full trains float weights",
        ),
        (
            c.quantisation and c.split,
            "quantisation",
            f"quantisation is {c.quantisation}, and a split run keeps its base in floats",
        ),
        (
            c.unpacked_gib and c.split,
            "unpacked_gib",
            "unpacked_gib is for a quantised base, and a split run keeps its base in floats",
        ),
    ]
