"""Model cards of what the store holds: states, sizes and notes."""

from collections.abc import Sequence

from lorica.serve.exchange import ModelCard
from lorica.serve.generations import Alias, Generation
from lorica.serve.residency import Residency


def alias_card(entry: Alias, parent: str, residency: Residency) -> ModelCard:
    """The card of an alias. A load that failed is a warning, and the state if none worked."""
    failures = [] if entry.failure is None else [f"the last load failed: {entry.failure}"]
    if entry.live is None:
        state = "loading" if entry.is_loading else "failed" if failures else "registered"
        return ModelCard(
            entry.name, parent, "", 0, state, pinned=entry.pinned, warnings=tuple(failures)
        )
    keys = entry.live.keys.values()
    state = "resident" if any(map(residency.is_resident, keys)) else "evicted"
    if entry.lost is not None and entry.lost[0] is entry.live:
        failures.append(f"it left the memory, and cannot be read again: {entry.lost[1]}")
        state = "failed" if state == "evicted" else state
    return generation_card(entry.live, parent, residency, state, entry.pinned, failures)


def generation_card(
    generation: Generation,
    parent: str,
    residency: Residency,
    state: str,
    pinned: bool = False,
    failures: Sequence[str] = (),
) -> ModelCard:
    return ModelCard(
        name=generation.alias,
        parent=parent,
        digest=generation.digest,
        generation=generation.number,
        state=state,
        pinned=pinned,
        resident_bytes=sum(map(residency.bytes_of, set(generation.keys.values()))),
        method=generation.method,
        conditions=generation.conditions,
        notes=dict(generation.notes) or None,
        warnings=(*generation.notices, *failures),
        loaded_at=generation.loaded_at,
    )
