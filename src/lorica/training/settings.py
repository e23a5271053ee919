"""The settings of a run: types, defaults, limits and help. `config` reads and checks them.

The method stays plain data, because methods import torch and `lorica train --help` must not.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorica.data.config import DataConfig

Count = Annotated[int, Field(ge=1)]


def setting(group: str, default: Any, meaning: str, **limits: Any) -> Any:
    """A field with its help text and its group in `lorica train --help`.

    default: a value, or a function of the settings above it.
    """
    key = "default_factory" if callable(default) else "default"
    limits[key] = default
    return Field(description=meaning, json_schema_extra={"group": group}, **limits)


def _steps_or_epochs(given: dict[str, Any]) -> float | None:
    return None if given.get("max_steps") else 3.0


def _warmup(given: dict[str, Any]) -> float:
    return 0.0 if given.get("warmup_steps") else 0.03


def _output(given: dict[str, Any]) -> str:
    return f"runs/{given['method']['name']}-{Path(given['data'].path).stem}"


class TrainSettings(BaseModel):
    """What to train, on which rows, how, and where the run is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base: str = setting(
        "run",
        "bundled",
        "folder or hub id of the base model; `bundled` is in this package",
        min_length=1,
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = setting(
        "run",
        "float32",
        "dtype of the base weights and of the computation, auto: that of the base's files; "
        "adapters stay in float32",
    )
    quantisation: Literal["nf4", "fp4", "int8"] | None = setting(
        "run",
        None,
        "quantise the linear layers of the base to 4 or 8 bits per weight; null: no quantisation",
    )
    double_quantisation: bool = setting(
        "run", True, "quantise the scales of 4-bit blocks too: 4.13 bits per weight instead of 4.5"
    )
    unpacked_gib: float = setting(
        "run", 0.0, "GiB for dequantised copies of weights of a quantised base, to save time", ge=0
    )
    offload: Literal["cpu", "disk"] | None = setting(
        "run",
        None,
        "where frozen weights wait until they are needed: in their files, which a CPU maps (disk), "
        "or beside an accelerator (cpu, disk); null: they stay in memory",
    )
    init_from: str | None = setting(
        "run",
        None,
        "folder of a run or an adapter whose trained tensors the new adapter starts from",
        min_length=1,
    )
    data: DataConfig = Field(
        description="short for data.path",
        json_schema_extra={"group": "data"},
    )
    method: dict[str, Any] = setting(
        "method", {"name": "lora"}, "name of the method; its own settings as method.NAME"
    )

    target_modules: list[str] | str | None = setting(
        "sites",
        None,
        "layers to adapt: name suffixes, one regex, all-linear (all but the output head), or all; "
        "null: what the method asks for; []: none, beside target_parameters",
    )
    target_parameters: list[str] | str | None = setting(
        "sites",
        None,
        "fused weights of experts to adapt (lora, dora): experts (all of them) or name suffixes "
        "(mlp.experts.down_proj); null: experts are not adapted",
        min_length=1,
    )
    exclude_modules: list[str] | str | None = setting(
        "sites", None, "suffixes or a regex of layers to leave out of target_modules"
    )
    layers_to_transform: list[Annotated[int, Field(ge=0)]] | None = setting(
        "sites", None, "indices of the transformer blocks to adapt, from 0; null: all"
    )
    rank_pattern: dict[str, Count] = setting(
        "sites", {}, "suffix or regex of a layer -> its r, instead of method.r"
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = setting(
        "sites", {}, "suffix or regex of a layer -> its alpha, instead of method.alpha"
    )
    modules_to_save: list[str] = setting(
        "sites", [], "suffixes of modules to train in full and save with the adapter"
    )
    trainable_token_indices: list[Annotated[int, Field(ge=0)]] = setting(
        "sites", [], "token ids whose embedding rows are trained"
    )

    optimizer: Literal["adamw", "paged_adamw", "sgd"] = setting(
        "optimisation",
        "adamw",
        "AdamW (betas 0.9, 0.999), the same with its state paged (CUDA), or SGD without momentum",
    )
    learning_rate: Annotated[float, Field(gt=0)] | None = setting(
        "optimisation",
        None,
        "peak learning rate per optimizer step; null: the method's own, for the base's hidden size",
    )
    weight_decay: float = setting(
        "optimisation",
        0.0,
        "weight decay of matrices (vectors do not decay), times the learning rate, per step",
        ge=0,
    )
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "optimisation",
        "cosine",
        "how the learning rate falls to 0 after the warm-up; constant: it does not fall",
    )
    warmup_steps: int = setting(
        "optimisation", 0, "optimizer steps in which the learning rate rises from 0", ge=0
    )
    warmup_ratio: float = setting(
        "optimisation",
        _warmup,
        "warm-up as a share of all steps (0.03 without warmup_steps)",
        ge=0,
        lt=1,
    )
    max_grad_norm: float = setting(
        "optimisation", 1.0, "gradients of a step are clipped to this norm", gt=0
    )
    micro_batch_size: int = setting(
        "optimisation", 8, "rows that go through the model at a time, per process", ge=1
    )
    gradient_accumulation_steps: int = setting(
        "optimisation", 1, "micro-batches of one optimizer step", ge=1
    )
    max_tokens_per_micro_batch: Count | None = setting(
        "optimisation",
        None,
        "tokens that go through the model at a time, per process, instead of micro_batch_size "
        "rows; an optimizer step keeps its micro_batch_size x gradient_accumulation_steps rows",
    )
    max_steps: Count | None = setting(
        "optimisation", None, "optimizer steps of the run, instead of epochs"
    )
    epochs: Annotated[float, Field(gt=0)] | None = setting(
        "optimisation", _steps_or_epochs, "passes over the rows (3 without max_steps)"
    )
    gradient_checkpointing: bool = setting(
        "optimisation", False, "recompute activations in the backward pass, to save memory"
    )
    seed: int = setting(
        "run",
        0,
        "seed of every random choice, the start of the adapter included",
        ge=0,
        lt=2**32,
    )

    shard: bool = setting(
        "run",
        False,
        "each process of torchrun holds a part of every weight (FSDP2), not the whole base",
    )
    split: Literal["cloud", "device"] | None = setting(
        "split", None, "role of this process: cloud holds the base, device everything else"
    )
    peer: str | None = setting("split", None, "address of the cloud process, HOST:PORT")
    active_share: float = setting(
        "split",
        1.0,
        "share of the adapted layers that are active; the others rest for a time",
        gt=0,
        le=1,
    )
    active_steps: int = setting(
        "split", 100, "optimizer steps between choices of the active layers", ge=1
    )

    eval_steps: Count | None = setting(
        "watching",
        None,
        "optimizer steps between evaluations; null: at the beginning and the end only",
    )
    save_steps: Count | None = setting(
        "watching",
        None,
        "optimizer steps between checkpoints; null: eval_steps, or a tenth of the run",
    )
    keep_checkpoints: int = setting(
        "watching", 2, "number of checkpoints to keep, the newest", ge=1
    )
    early_stopping_patience: Count | None = setting(
        "watching", None, "stop after this many evaluations without a lower loss; null: never"
    )
    loss_limit: Annotated[float, Field(gt=0)] | None = setting(
        "watching",
        None,
        "stop when the smoothed loss is this much (nats) above its lowest; null: never",
    )
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = setting(
        "watching", [], "experiment trackers that receive the metrics of the run"
    )
    output: str = setting(
        "run", _output, "folder of the run (runs/<recipe> or runs/<method>-<data>)", min_length=1
    )
