"""Settings of a run that are valid alone and wrong together."""

from collections.abc import Iterator

from lorica.training.settings import TrainSettings

Conflict = tuple[str, str]
"""(setting to change, what is wrong)"""


def conflicts(c: TrainSettings) -> Iterator[Conflict]:
    """Everything that is wrong between the settings."""
    yield from _length_conflicts(c)
    yield from _evaluation_conflicts(c)
    yield from _quantisation_conflicts(c)
    yield from _offload_conflicts(c)
    yield from _split_conflicts(c)
    yield from _shard_conflicts(c)


def _length_conflicts(c: TrainSettings) -> Iterator[Conflict]:
    if c.max_steps and c.epochs:
        yield "epochs", f"epochs is {c.epochs} and max_steps {c.max_steps}; give one of them"
    if not c.max_steps and not c.epochs:
        yield "epochs", "epochs and max_steps are both null; give one of them"
    if c.warmup_steps and c.warmup_ratio:
        both = f"warmup_ratio is {c.warmup_ratio} and warmup_steps {c.warmup_steps}"
        yield "warmup_ratio", f"{both}; give one of them"
    if c.max_steps and c.warmup_steps >= c.max_steps:
        steps = f"warmup_steps is {c.warmup_steps} of max_steps {c.max_steps}"
        yield "warmup_steps", f"{steps}; no step is left after the warm-up"


def _evaluation_conflicts(c: TrainSettings) -> Iterator[Conflict]:
    if c.early_stopping_patience and not c.eval_steps:
        yield (
            "early_stopping_patience",
            "early_stopping_patience needs eval_steps: without it the run is evaluated once",
        )
    if c.eval_steps and c.data.validation == 0:
        yield "eval_steps", "eval_steps needs validation rows, and data.validation is 0"
    if c.max_steps and c.eval_steps and c.eval_steps > c.max_steps:
        steps = f"eval_steps is {c.eval_steps}, more than max_steps {c.max_steps}"
        yield "eval_steps", f"{steps}; the run would never be evaluated"


def _quantisation_conflicts(c: TrainSettings) -> Iterator[Conflict]:
    if not c.double_quantisation and c.quantisation not in ("nf4", "fp4"):
        yield (
            "double_quantisation",
            "double_quantisation is false, which has an effect only with quantisation nf4 or fp4",
        )
    chosen = f"quantisation is {c.quantisation}"
    if c.quantisation and c.method["name"] == "full":
        yield "quantisation", f"{chosen}, and method full trains float weights"
    if c.quantisation and c.split:
        yield "quantisation", f"{chosen}, and a split run keeps its base in floats"
    if c.unpacked_gib and c.split:
        yield (
            "unpacked_gib",
            "unpacked_gib is for a quantised base, and a split run keeps its base in floats",
        )


def _offload_conflicts(c: TrainSettings) -> Iterator[Conflict]:
    if not c.offload:
        return
    chosen = f"offload is {c.offload}"
    if c.quantisation:
        yield (
            "offload",
            f"{chosen}, and packed weights of {c.quantisation} are in no file; give one of them",
        )
    if c.split:
        yield "offload", f"{chosen}, and the base of a split run is in the cloud process"
    if c.method["name"] == "full":
        yield "offload", f"{chosen}, and method full trains every weight, so that none can wait"


def _split_conflicts(c: TrainSettings) -> Iterator[Conflict]:
    if c.peer and not c.split:
        yield "split", "peer is given without split; set split to cloud or device"
    if c.active_share < 1 and not c.split:
        yield "active_share", "active_share is for a split run"
    if not c.split:
        return
    if not c.peer:
        yield "peer", "a split run needs peer, the address of the cloud as HOST:PORT"
    if c.method["name"] != "lora":
        yield "split", f"a split run needs method lora, and the method is {c.method['name']}"
    if c.gradient_checkpointing:
        yield (
            "gradient_checkpointing",
            "gradient_checkpointing would ask the device for every update twice; leave it out",
        )
    if c.modules_to_save or c.trainable_token_indices or c.data.add_tokens or c.target_parameters:
        yield (
            "split",
            "a split run trains adapters of linear layers: no experts, no modules_to_save, no rows",
        )


def _shard_conflicts(c: TrainSettings) -> Iterator[Conflict]:
    if not c.shard:
        return
    if c.split:
        yield "shard", "shard divides the base among equal processes, and split among two others"
    if c.offload:
        yield (
            "offload",
            f"offload is {c.offload}, and shard keeps no weight whole; give one of them",
        )
    if c.optimizer == "paged_adamw":
        yield "optimizer", "optimizer paged_adamw cannot be sharded; with shard use adamw"
    if c.unpacked_gib:
        yield (
            "unpacked_gib",
            "unpacked_gib keeps whole weights in every process, and shard a part; give one of them",
        )
