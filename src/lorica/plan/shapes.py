"""The sizes of a base, read from config.json and the headers of its weights, without torch.

A known architecture (lorica.plan.families) needs its config.json alone, so that a base can be
planned for before it is downloaded. The layers of another one are read from its weights.
"""

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lorica.base import bundled
from lorica.base.folder import check_folder
from lorica.base.quantisation_config import quantisation_of, unsupported_quantisation
from lorica.base.untrusted_files import check_floats, weight_contents
from lorica.errors import BaseError, closest
from lorica.plan import families, headers
from lorica.plan.families import FAMILIES, Config, SiteShape
from lorica.plan.model_config import CONTEXT, COUNTS, check_counts, read_config

BLOCK, SECOND_BLOCK = 64, 256
"""Weights per scale of a 4-bit layer, and scales per scale of the second level."""
MAX_UNKNOWN = 0.01
"""Share of a known architecture's parameters by which its weights may differ from them."""
MIXTURE = (
    "this is a mixture of experts: memory and time do not count what its experts compute and keep; "
    "--measure times three steps"
)
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTISED = ("nf4", "fp4", "int8")
"""How a checkpoint may be quantised to be loaded; see lorica.base.quantise."""


@dataclass(frozen=True)
class Shapes:
    """The sizes of a base.

    base: as it was asked for. family: model_type of its config. context: longest row in tokens;
    None: not stated. tied: the output head is the embedding. gated: the MLP has two layers that
    read its input. packs: rows are trained packed, not padded. quantised: how its
    files are quantised already; None: they hold floats.
    """

    base: str
    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    context: int | None
    tied: bool
    gated: bool
    packs: bool
    sites: tuple[SiteShape, ...]
    quantised: str | None = None
    notices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def parameters(self) -> int:
        """Elements of all tensors, a tied head counted once."""
        return sum(site.parameters for site in self.sites if not (self.tied and site.is_head))

    @property
    def quantisable(self) -> tuple[SiteShape, ...]:
        """The layers that quantisation packs: linear, except the output head."""
        return tuple(s for s in self.sites if s.kind == "linear" and not s.is_head)

    def bytes_of(self, dtype: str, quantisation: str | None = None, double: bool = True) -> int:
        """Bytes of the weights in memory. double: the scales of 4-bit blocks are quantised too."""
        dense = DTYPE_BYTES[dtype]
        if quantisation is None:
            return self.parameters * dense
        packed = [site.inputs * site.outputs for site in self.quantisable]
        bits = sum(
            n * bits_per_weight(quantisation, double, site.inputs)
            for n, site in zip(packed, self.quantisable, strict=True)
        )
        return (self.parameters - sum(packed)) * dense + int(bits / 8)


def bits_per_weight(quantisation: str, double: bool, inputs: int) -> float:
    """Bits of codes and scales per weight of a quantised layer; see base.quantise.

    nf4, fp4: 4 bits, and a float32 for 64 weights; with double quantisation 8 bits for 64 weights,
    and a float32 for 256 of these: 4.127 bits. int8: 8 bits, and a float32 for a row of inputs.
    """
    if quantisation == "int8":
        return 8 + 32 / inputs
    return 4 + (8 / BLOCK + 32 / (BLOCK * SECOND_BLOCK) if double else 32 / BLOCK)


@cache
def read_shapes(base: str) -> Shapes:
    """The sizes of a base: a folder, a hub id, or "bundled". A folder may hold config.json alone.

    Raises: BaseError, FileError for a folder that is no base, a config without its sizes, or an
        architecture that is not known and whose weights are not here.
    """
    folder = base_folder(base)
    config = read_config(base, folder)
    quantised = quantisation_of(config.get("quantization_config"))[0]
    if quantised is not None and quantised not in QUANTISED:
        why = f"plan knows {', '.join(QUANTISED)}"
        raise unsupported_quantisation(base, quantised, why)
    tensors = headers.weight_tensors(folder) if has_weights(folder) else {}
    if quantised is None:
        weights = [name for name in tensors if name.endswith((".weight", ".bias"))]
        check_floats(base, weights, weight_contents(folder))
    notices = () if tensors else (f"{base} has no weights here: sizes are from config.json",)
    family = str(config.get("model_type") or "unknown")
    known = FAMILIES.get(family)
    if known is not None and tensors and not quantised:
        known = known if _holds(known, config, tensors) else None
    if known is None and not tensors:
        raise BaseError(
            f"{base} is a {family} model, whose layers are not known from config.json alone.",
            known=", ".join(FAMILIES),
            closest=closest(family, FAMILIES),
            fix="download its weights, and name their folder: their headers are read",
        )
    if known is None:
        check_counts(base, config)
    sizes = {key: families.field(config, *names) for key, names in COUNTS.items()}
    if known is not None:
        heads, kv_heads, head_size = known.heads(config)
        sites = tuple(known.sites(config))
        tied = bool(config.get("tie_word_embeddings", known.tied))
        packs = not (isinstance(known, families.LlamaLike) and _softcapped(config, family))
    else:
        heads = sizes["heads"]
        kv_heads = families.field(config, "num_key_value_heads", default=heads)
        head_size = families.field(config, "head_dim", default=max(sizes["hidden"] // heads, 1))
        sites = tuple(headers.sites_in(tensors))
        tied, packs = not any(site.is_head for site in sites), True
        notices += (f"the layers of this {family} model are read from its weights",)
    if any(site.experts for site in sites):
        notices += (MIXTURE,)
    inner = families.field(config, "intermediate_size", "n_inner", default=4 * sizes["hidden"])
    return Shapes(
        base=base,
        family=family,
        layers=sizes["layers"],
        hidden=sizes["hidden"],
        intermediate=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocab=sizes["vocab"],
        context=families.field(config, *CONTEXT),
        tied=tied,
        gated=any(site.name.endswith(("gate_proj", "gate_up_proj")) for site in sites),
        packs=packs,
        sites=sites,
        quantised=quantised,
        notices=notices,
    )


def has_weights(folder: Path) -> bool:
    """Whether weights are beside config.json."""
    return any(folder.glob("*.safetensors"))


def base_folder(base: str) -> Path:
    """The folder of a base; of a hub id, that of its config.json in the hub's cache.

    Raises: BaseError, FileError if there is no config.json, or the folder is not whole.
    """
    if base == bundled.NAME:
        return bundled.FOLDER
    local = Path(base).expanduser()
    if local.is_dir() and os.path.lexists(local / "config.json"):
        if any(local.glob("*.safetensors*")):
            check_folder(local)
        return local
    if local.exists() or local.is_absolute() or base.startswith(".") or base.count("/") > 1:
        check_folder(local)
    return _hub_folder(base)


def _hub_folder(repo: str) -> Path:
    """Download config.json and the tokenizer of a model of the hub, and nothing else."""
    from lorica.base.hub import reachable_or_cached

    where = reachable_or_cached(repo)
    if where != repo:
        return Path(where)
    from huggingface_hub import hf_hub_download

    try:
        folder = Path(hf_hub_download(repo, "config.json")).parent
    except Exception as error:  # the hub's own classes, and those of its http client
        raise BaseError(
            f"the hub does not give config.json of {repo!r}.",
            why=str(error).strip().partition("\n")[0],
            fix="check the model id, and that you may read it (hf auth login)",
        ) from None
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        try:
            hf_hub_download(repo, name)
        except Exception:  # a model without it: tokens are estimated from characters
            continue
    return folder


def _holds(family: families.Family, config: Config, tensors: headers.Tensors) -> bool:
    """Whether the weights are those of the family's layers, and of no further parts (images)."""
    sizes = {s.name: s.parameters for s in family.sites(config) if s.parameters and not s.is_head}
    rest = headers.elements(tensors, heads=False) - sum(sizes.values())
    return abs(rest) <= MAX_UNKNOWN * sum(sizes.values())


def _softcapped(config: Config, family: str) -> bool:
    """Attention with soft caps, as in Gemma 2, is not packed."""
    return family == "gemma2" and config.get("attn_logit_softcapping", 50.0) is not None
