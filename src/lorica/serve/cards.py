"""Model cards of what the store holds: states, sizes and notes."""

from lorica.serve.exchange import ModelCard
from lorica.serve.generations import Alias, Generation
from lorica.serve.residency import Residency


def alias_card(entry: Alias, parent: str, residency: Residency) -> ModelCard:
    """The card of an alias. A load that failed is in its notes, or in its state if none worked."""
    failure = {} if entry.failure is None else {"load failed": entry.failure}
    if entry.live is None:
        state = "loading" if entry.is_loading else "failed" if failure else "registered"
        return ModelCard(entry.name, parent, "", 0, state, entry.pinned, notes=failure or None)
    keys = entry.live.keys.values()
    state = "resident" if any(map(residency.is_resident, keys)) else "evicted"
    if entry.lost is not None and entry.lost[0] is entry.live:
        failure["cannot be read again"] = entry.lost[1]
        state = "failed" if state == "evicted" else state
    return generation_card(entry.live, parent, residency, state, entry.pinned, failure)


def generation_card(
    generation: Generation,
    parent: str,
    residency: Residency,
    state: str,
    pinned: bool = False,
    failure: dict[str, str] | None = None,
) -> ModelCard:
    notes = {**generation.notes, **(failure or {})}
    for number, notice in enumerate(generation.notices, start=1):
        notes[f"notice {number}"] = notice
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
        notes=notes or None,
        loaded_at=generation.loaded_at,
    )
