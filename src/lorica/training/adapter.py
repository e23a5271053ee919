"""Put the adapter of a run on its base, and give its tensors their start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lorica.base.added_tokens import trained_for_tokens
from lorica.base.condition_texts import encode_conditions
from lorica.base.load import LoadedModel
from lorica.base.router_loss import router_loss_notices
from lorica.core.attach import Count, adapt, trainable_parameters
from lorica.core.bank import spec_of
from lorica.core.condition import unused_conditions
from lorica.core.fused_experts import fused_experts
from lorica.core.site import hidden_size_of
from lorica.core.state import adapter_state, load_adapter_state
from lorica.data.batch import labels_of, pad
from lorica.data.example import Example
from lorica.data.load import Data, distinct_conditions
from lorica.methods.lora import Lora
from lorica.training.config import TrainConfig
from lorica.training.init_from import start_from
from lorica.training.placement import Placement
from lorica.training.uncalled_layers import exclude_uncalled

CALIBRATION_ROWS, CALIBRATION_BATCH = 512, 8
"""Rows that a start which needs data is computed from at most, and how many at a time."""
MIN_CALIBRATION_LABELS = 512
"""Label tokens in these rows from which they alone are used; fewer span few directions."""


@dataclass
class TrainedAdapter:
    """The adapter that a run trains.

    name: on the model. tensors: its parameters by name, frozen ones too. initial: copies of the
    trained ones before the first step, on the CPU. count: parameters trained, and of the base.
    best: all tensors at the lowest validation loss, on the CPU; None without early stopping.
    """

    name: str
    tensors: dict[str, nn.Parameter]
    initial: dict[str, Tensor]
    count: Count
    best: dict[str, Tensor] | None = None


def add_adapter(
    base: LoadedModel, config: TrainConfig, data: Data, name: str, placement: Placement
) -> list[str]:
    """Put a run's adapter on its base; a classifier's head is always trained whole with it.

    In place; the adapter is the only active one afterwards. Returns: notices.
    """
    known = distinct_conditions(data.train)
    layers, ids = trained_for_tokens(base.model, base.tokenizer, config.data.add_tokens)
    whole = list(dict.fromkeys([*config.modules_to_save, *base.head.whole, *layers]))
    method = config.build_method().for_conditions(known, hidden_size_of(base.model))
    exclude, notices = exclude_uncalled(base, config, method, whole, can_probe=placement.has_blocks)
    adapt(
        base.model,
        method,
        name=name,
        seed=config.seed,
        target_modules=config.target_modules,
        exclude_modules=exclude,
        layers_to_transform=config.layers_to_transform,
        rank_pattern=config.rank_pattern,
        alpha_pattern=config.alpha_pattern,
        target_parameters=config.target_parameters,
        modules_to_save=whole,
        trainable_token_indices=[*dict.fromkeys([*config.trainable_token_indices, *ids])],
    )
    notices += unused_conditions(base.model, known)
    notices += encode_conditions(
        base.model, base.tokenizer, distinct_conditions(data.train, data.validation)
    )
    return notices + fused_experts(base.model) + router_loss_notices(base.model)


def initialize_adapter(
    base: LoadedModel,
    config: TrainConfig,
    data: Data,
    saved: Mapping[str, Tensor] | None,
    name: str,
) -> list[str]:
    """Start a new run from the adapter of another (init_from), or from its rows. In place.

    saved: tensors of the checkpoint that the run resumes from; None: the run is new.
    Returns: notices.
    """
    if config.init_from and saved is None:
        return start_from(base, config.init_from, name, data)
    method = spec_of(base.model, name).method
    if isinstance(method, Lora) and method.initialization.needs_data:
        _initialize_from_rows(base, data.train, saved, name)
    return []


def trained_adapter(model: nn.Module, name: str) -> TrainedAdapter:
    """The adapter `name` of a model, as it is before the first step."""
    state = adapter_state(model, name)
    tensors = {key: t for key, t in state.items() if isinstance(t, nn.Parameter)}
    trained = {key: t for key, t in tensors.items() if t.requires_grad}
    return TrainedAdapter(name, tensors, copy_of(trained), trainable_parameters(model))


def keep_as_best(adapter: TrainedAdapter, model: nn.Module, placement: Placement) -> None:
    """Copy the tensors of the lowest validation loss so far; all processes call this. In place."""
    adapter.best = copy_of(placement.whole(adapter_state(model, adapter.name)))


def restore_best(adapter: TrainedAdapter, model: nn.Module) -> None:
    """Put the tensors of the lowest validation loss back into the model. In place."""
    assert adapter.best is not None
    load_adapter_state(model, adapter.best, adapter.name, source="the best checkpoint")


def copy_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}


def _initialize_from_rows(
    base: LoadedModel, rows: Sequence[Example], saved: Mapping[str, Tensor] | None, name: str
) -> None:
    """Complete a LoRA whose start needs to see rows (EVA). In place.

    saved: tensors of a checkpoint, which has its start already: its ranks are taken; or None.
    """
    from lorica.inits.eva import calibrate, restore_ranks

    if saved is not None:
        restore_ranks(base.model, saved, name)
        return
    device = next(base.model.parameters()).device
    pad_id = base.tokenizer.pad_token_id or 0
    batches = [
        pad(rows[i : i + CALIBRATION_BATCH], pad_id).to(device)
        for i in range(0, min(len(rows), CALIBRATION_ROWS), CALIBRATION_BATCH)
    ]
    inputs = [{"input_ids": b.input_ids, "attention_mask": b.attention_mask} for b in batches]
    if sum(len(b.targets) for b in batches) >= MIN_CALIBRATION_LABELS:
        pairs = zip(inputs, batches, strict=True)
        inputs = [{**arguments, "labels": labels_of(batch)} for arguments, batch in pairs]
    calibrate(base.model, inputs, name=name)
