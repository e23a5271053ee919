"""How many parameters a method trains on a base, by kind of layer, without building it.

Each method states the parameters of one site as `count`, an expression in r, I, O and its settings.
What is no sum over sites (a shared network, a prefix, norms) is written out here. A test compares
both with the adapter that is really attached, for every method.

    I  in_features   O  out_features   r  rank
"""

import ast
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorica.core.bounds import check_rank
from lorica.errors import ConfigError
from lorica.plan.families import SiteShape
from lorica.plan.selection import adapted_sites, rank_at, saved_sites, scaled_at_input
from lorica.plan.shapes import Shapes
from lorica.recipe.catalogue import method as catalogued
from lorica.training.settings import TrainSettings

TENSOR_BYTES = 120
"""Bytes of a tensor's entry in the header of a safetensors file."""
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True)
class Parameters:
    """by_kind: kind of layer (q_proj) -> trained parameters. frozen: elements that an adapter
    stores and does not train; saved: those of them in its file. tensors: in its file."""

    by_kind: Mapping[str, int]
    frozen: int
    saved: int
    tensors: int

    @property
    def trained(self) -> int:
        return sum(self.by_kind.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of the adapter file: float32, and its header."""
        return 4 * (self.trained + self.saved) + TENSOR_BYTES * self.tensors


def count_parameters(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    *,
    conditions: Sequence[str] = (),
    classes: int | None = None,
) -> Parameters:
    """The parameters of a run's adapter.

    method: its name and all its settings. conditions: those of the training rows. classes: of a
    classifier, whose head is trained whole; None: it is a language model.

    Raises: TargetError if a target selects nothing; ConfigError for an unknown method.
    """
    sites = adapted_sites(shapes, method, settings)
    if classes is not None:
        sites = [site for site in sites if not site.is_head]
    for site in sites:
        check_rank(
            method["name"], rank_at(site, method, settings), site.name, site.inputs, site.outputs
        )
    counts: Counter[str] = Counter()
    counts.update(_of_method(shapes, method, settings, sites, conditions))
    for site in saved_sites(shapes, settings.modules_to_save):
        counts[_leaf(site)] += site.parameters
    if ids := {*settings.trainable_token_indices}:
        counts["embedding rows"] += len(ids) * shapes.hidden
    if added := len(settings.data.add_tokens):
        counts += _added_tokens(shapes, added)
    if classes is not None:
        counts["classes"] += classes * shapes.hidden
    frozen, saved = _frozen(method, settings, sites)
    return Parameters(dict(counts), frozen, saved, tensors=2 * len(sites))


def _of_method(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    sites: Sequence[SiteShape],
    conditions: Sequence[str],
) -> Counter[str]:
    counts: Counter[str] = Counter()
    match method["name"]:
        case "prefix_tuning":
            counts["prefix"] = _prefix(shapes, method)
        case "prompt_tuning":
            counts["prompt"] = _prompt(shapes, method)
        case "hyperlora":
            counts["network"] = _network(shapes, method, settings, sites, conditions)
        case _:
            scaled = scaled_at_input(sites, method) if method["name"] == "ia3" else set()
            for site in sites:
                if shapes.tied and site.is_head and method["name"] == "full":
                    continue  # it is the embedding
                own = {**method, "r": rank_at(site, method, settings), "scaled": scaled}
                counts[_leaf(site)] += _at_site(shapes, own, site) * max(site.experts, 1)
    return counts


def _leaf(site: SiteShape) -> str:
    return site.name.rpartition(".")[2]


def _at_site(shapes: Shapes, method: Mapping[str, Any], site: SiteShape) -> int:
    """Trained parameters of the adapter of one site. method: with r of this site."""
    r, sizes = method["r"], site.inputs + site.outputs
    match method["name"]:
        case "full":
            return site.parameters
        case "bottleneck" if site.kind == "other":
            return site.parameters
        case "llama_adapter" if site.kind == "attention":
            return method["adapter_len"] * shapes.hidden + shapes.heads
        case "llama_adapter":
            return 2 * site.outputs if site.kind == "linear" else site.parameters
        case "ia3":
            return site.inputs if site.name in method["scaled"] else site.outputs
        case "mora":
            rows = int(math.sqrt(sizes * r) + 0.5)
            return (max(rows - rows % 2, 2) if method["mora_type"] == 6 else rows) ** 2
        case "blora":
            pruned = method["prune_rank"]
            grids = (3 if pruned else 2) + (2 + pruned) * method["quantise_activations"]
            gates = grids * (method["n_bits"].bit_length() - 2) + (r - 1) * pruned
            return r * (sizes + pruned) + 2 + pruned + gates
    names = {k: v for k, v in method.items() if type(v) in (int, bool, type(None))}
    count = evaluate(
        catalogued(method["name"]).facts["count"], {**names, "I": site.inputs, "O": site.outputs}
    )
    return count + site.outputs * bool(method.get("lora_bias"))


def _prefix(shapes: Shapes, method: Mapping[str, Any]) -> int:
    tokens, width = method["num_virtual_tokens"], method["reparametrisation"]
    table = 2 * shapes.layers * shapes.kv_heads * shapes.head_size
    if width is None:
        return tokens * table
    return tokens * shapes.hidden + (shapes.hidden + 1) * width + (width + 1) * table


def _prompt(shapes: Shapes, method: Mapping[str, Any]) -> int:
    tokens, width, hidden = method["num_virtual_tokens"], method["reparametrisation"], shapes.hidden
    if width is None:
        return tokens * hidden
    return tokens * hidden + (hidden + 1) * width + (width + 1) * width + (width + 1) * hidden


def _network(
    shapes: Shapes,
    method: Mapping[str, Any],
    settings: TrainSettings,
    sites: Sequence[SiteShape],
    conditions: Sequence[str],
) -> int:
    """HyperLoRA's network: encoder, depths, types, norms, mixer, residual block, output, heads."""
    n, d, r = method["latent"], method["hidden"], int(method["r"])
    half, quarter = n // 2, n // 4
    known = {*method["conditions"]} or {*conditions}
    match method["condition"]:
        case "task":
            encoder = max(len(known), 1) * half
        case "pair":
            encoder = len({word for pair in known for word in pair.split("-")}) * (half // 2)
        case "text":
            encoder = (shapes.hidden + 1) * half
        case _:
            width = method["width"] or next((c.count(",") + 1 for c in known), 1)
            encoder = (width + 1) * half
    depths = len({site.layer for site in sites})
    types: dict[tuple[str, int, int], int] = Counter(
        (_leaf(site), site.inputs, site.outputs) for site in sites
    )
    heads = sum(r * (i + o) * (d + count) for (_, i, o), count in types.items())
    norms = 2 * (half + 2 * quarter)
    trunk = (n * n + n) + 2 * n + (n + 1) * 2 * n + (2 * n + 1) * n + 2 * n + (n + 1) * d
    return encoder + (depths + len(types)) * quarter + norms + trunk + heads


def _added_tokens(shapes: Shapes, added: int) -> Counter[str]:
    """data.add_tokens: their rows if the head is tied to the embedding, else both layers whole."""
    if shapes.tied:
        return Counter({"embedding rows": added * shapes.hidden})
    return Counter({"embedding and head": 2 * (shapes.vocab + added) * shapes.hidden})


def _frozen(
    method: Mapping[str, Any], settings: TrainSettings, sites: Sequence[SiteShape]
) -> tuple[int, int]:
    """(elements that adapters hold without training them, those of them that are saved)."""
    ranks = [rank_at(site, method, settings) for site in sites]
    pairs = list(zip(sites, ranks, strict=True))
    match method["name"]:
        case "lora_fa":
            frozen = sum(r * site.inputs for site, r in pairs)
            return frozen, frozen
        case "vera":
            frozen = max(ranks) * (max(s.inputs for s in sites) + max(s.outputs for s in sites))
            return frozen, frozen if method["save_projection"] else 0
        case "aflora" if method["freeze_square"]:
            frozen = sum(r * (s.inputs + s.outputs) for s, r in pairs if s.inputs == s.outputs)
            return frozen, frozen
        case "dora":
            return sum(site.outputs * max(site.experts, 1) for site in sites), 0
    start = str(method.get("init") or "").partition("_")[0]
    if start in ("pissa", "olora", "loftq"):  # the initial pair is subtracted from the update
        frozen = sum(r * (site.inputs + site.outputs) for site, r in pairs)
        return frozen, frozen
    return 0, 0


def evaluate(expression: str, names: Mapping[str, Any]) -> int:
    """An arithmetic expression in `names`: + - * // **, comparisons, and, or, not, int().

    Raises: ConfigError if it holds anything else, or a name that is not known.
    """
    try:
        return int(_value(ast.parse(expression, mode="eval").body, names))
    except (KeyError, TypeError, SyntaxError, ValueError):
        raise ConfigError(
            f"the method states its parameters as {expression!r:.80}, which is no expression in "
            f"{', '.join(names)}.",
            fix="write `count` as arithmetic in r, I, O and the settings",
        ) from None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(int() | float() as number):
            return number
        case ast.Name(name):
            return names[name]
        case ast.BinOp(left, op, right):
            return OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.UnaryOp(ast.Not(), operand):
            return not _value(operand, names)
        case ast.BoolOp(ast.Or(), values):
            return next((v for v in (_value(x, names) for x in values) if v), 0)
        case ast.BoolOp(ast.And(), values):
            return all(_value(x, names) for x in values)
        case ast.Compare(left, [ast.NotEq()], [right]):
            return _value(left, names) != _value(right, names)
        case ast.Call(ast.Name("int"), [argument]):
            return int(_value(argument, names))
    raise ValueError(ast.dump(node))
