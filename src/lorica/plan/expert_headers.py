"""Fused weights of experts, from the names and shapes in a checkpoint.

Most checkpoints hold each expert's matrices under names of their own. transformers 5 stacks them
when it loads a model, and its names are those of the stacks:

    mlp.experts.0.gate_proj  mlp.experts.0.up_proj  ...   mlp.experts.gate_up_proj   (E, 2 i, h)
    mlp.experts.0.down_proj  ...                          mlp.experts.down_proj      (E, h, i)

    E  experts   h  hidden   i  intermediate
"""

import re
from collections.abc import Mapping

from lorica.plan.families import SiteShape

Tensors = Mapping[str, tuple[int, ...]]
OWN = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")
STACKS = {
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up_proj"),
    **dict.fromkeys(("down_proj", "w2"), "down_proj"),
}
"""The matrix of an expert -> the stack that it is a part of."""


def stacked(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """`tensors` under transformers' names, with the matrices of experts as stacks."""
    experts: dict[str, int] = {}
    rows: dict[str, list[int]] = {}
    result: dict[str, tuple[int, ...]] = {}
    for name, shape in tensors.items():
        part = OWN.fullmatch(name)
        if part is None or part[3] not in STACKS or len(shape) != 2:
            result[name.replace("block_sparse_moe.", "mlp.")] = shape
            continue
        module = part[1].replace(".block_sparse_moe.", ".mlp.")
        key = f"{module}.{STACKS[part[3]]}"
        experts[module] = max(experts.get(module, 0), int(part[2]) + 1)
        own = rows.setdefault(key, [0, shape[1]])
        own[0] += shape[0] if part[2] == "0" else 0
    stacks = {key: (experts[key.rpartition(".")[0]], *size) for key, size in rows.items()}
    return {**result, **stacks}


def expert_sites(module: str, tensors: Tensors, layer: int | None) -> list[SiteShape]:
    """The sites of a module of experts. Their elements are counted at the module itself.

    tensors: its own, by their names there.
    """
    stacks = {key: shape for key, shape in tensors.items() if len(shape) == 3}
    if not module.endswith("experts") or stacks.keys() != {"gate_up_proj", "down_proj"}:
        return []
    sizes = {key: shape[1:] for key, shape in stacks.items()}
    (rows, columns), (_, last) = sizes["gate_up_proj"], sizes["down_proj"]
    if rows == last and columns == 2 * sizes["down_proj"][0]:  # (E, h, 2 i) and (E, i, h)
        sizes = {key: (columns, rows) for key, (rows, columns) in sizes.items()}
    return [
        SiteShape(f"{module}.{key}", "expert", inputs, outputs, layer, experts=stacks[key][0])
        for key, (outputs, inputs) in sizes.items()
    ]
