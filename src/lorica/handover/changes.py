"""Which kinds of change an adapter makes, and whether a runtime reads them of a LoRA."""

from collections.abc import Mapping, Sequence

from torch import nn

from lorica.core.bank import spec_of
from lorica.errors import MergeError, listed
from lorica.formats.adapter_file import AdapterFile
from lorica.formats.low_rank import check_reducible
from lorica.formats.to_lora import low_rank_updates, of_method_and_whole
from lorica.handover.runtimes import Change, Runtime
from lorica.methods.hyperlora import Hyperlora

WORDS: dict[Change, str] = {
    "linear": "weights of linear layers",
    "embedding": "embeddings",
    "bias": "biases",
    "whole": "layers or tokens that are trained whole",
}


def why_merged(model: nn.Module, name: str, runtime: Runtime, rank: int | None) -> str | None:
    """Why adapter `name` goes to the runtime as a merged model; None: it goes as a LoRA.

    rank: the largest of a layer; None: exact. A condition is set, if the adapter takes one.
    Raises: MergeError if it is no change of weights at all.
    """
    of_method, whole = of_method_and_whole(model, name)
    weights = [(site, adapter) for site, adapter in of_method if site.kind != "other"]
    method = spec_of(model, name).method.name
    if experts := [site.name for site, _ in of_method if site.kind == "expert"]:
        return f"{method} adapts fused weights of experts ({experts[0]} and others)"
    check_reducible(of_method, method, rank or 1)  # full rank is another answer, not an error
    if rank is None and any(adapter.factors() is None for _, adapter in weights):
        return f"the update of {method} has full rank, and no LoRA equals it"
    updates = low_rank_updates(model, name, rank)
    kinds = {site.kind for site, update in updates if update.r}
    if any(update.shift is not None for _, update in updates):
        kinds.add("bias")
    if whole or len(weights) < len(of_method):
        kinds.add("whole")
    missing = [words for kind, words in WORDS.items() if kind in kinds - {*runtime.reads}]
    if missing:
        changed = " and ".join(missing)
        return f"the adapter changes {changed}, which {runtime.label} does not read of a LoRA"
    return None


def conditions_in(file: AdapterFile) -> list[str]:
    """The conditions that an adapter was made for; []: it has none, or takes any."""
    method = file.spec.method
    return list(method.conditions) if isinstance(method, Hyperlora) else []


def check_are_loras(files: Mapping[str, AdapterFile]) -> None:
    """Raises: MergeError if the method of one of several adapters has no LoRA that equals it."""
    merged = [name for name, file in files.items() if file.spec.method.to_lora == "approximate"]
    if merged:
        raise merged_beside_others(merged)


def merged_beside_others(names: Sequence[str]) -> MergeError:
    return MergeError(
        f"{listed(names)} can only be served merged, as a model of its own.",
        fix="export each by itself (a condition by --condition), or truncate all of them with "
        "--rank (the error is measured)",
    )
