"""Adapters and models as GGUF, compared with transformers.

The adapters are random, but of an effect that training has. Each is exported as a plain LoRA, and
written by lorica.handover.gguf.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor, nn

import lorica
from benchmarks.runtimes import tiny_models, tiny_tokenizers
from benchmarks.runtimes.llamacpp import log_probabilities, tokens_of
from benchmarks.runtimes.server import serving
from lorica.base.load import LoadedModel
from lorica.base.load import load as load_base
from lorica.core.adapter import Method
from lorica.core.bank import adapted_layers, bank_of
from lorica.formats.merge import merge_to
from lorica.formats.save import save
from lorica.handover.gguf.lora import write_lora
from lorica.handover.gguf.model import write_model
from lorica.handover.gguf.pre_tokenizers import RARE
from lorica.handover.gguf.writer import Dtype

BASE = "bundled"
TEXT = "Ticket 4821: the printer on floor 3 does not answer.\nOnce upon a time there was a fox."
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERNS = {
    "rank_pattern": {"down_proj": 2, "layers.3.self_attn.q_proj": 12},
    "alpha_pattern": {"layers.1.mlp.up_proj": 3},
}
ADAPTERS: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "LoRA": ("lora", {"r": 8}, {}),
    "rsLoRA": ("lora", {"r": 8, "alpha": 16, "use_rslora": True}, {}),
    "PiSSA": ("lora", {"r": 8, "init": "pissa"}, {}),
    "ranks and scales by pattern": ("lora", {"r": 6, "alpha": 9}, PATTERNS),
    "AdaLoRA, pruned to mixed ranks": ("adalora", {}, {}),
    "double LoRA": ("double_lora", {}, {}),
    "VeRA": ("vera", {}, {}),
}
IDS = [1, *(3 + 37 * i % 350 for i in range(39))]
"""Of the tiny models; more than their windows of sliding attention hold."""
MERGED = {"DoRA, merged": ("dora", {"r": 8}), "MoRA, merged": ("mora", {})}
SIZE = 0.02


@dataclass(frozen=True)
class Comparison:
    """Log-probabilities of llama.cpp and of transformers, at every token and position.

    worst, mean: of the absolute differences, nats. effect: the largest that the adapter makes.
    """

    worst: float
    mean: float
    effect: float = 0.0


def ids_of(opened: LoadedModel) -> list[int]:
    return opened.tokenizer(TEXT, add_special_tokens=False)["input_ids"]


def expected(opened: LoadedModel) -> Tensor:
    """Log-probabilities (T, V) in float32."""
    with torch.no_grad():
        logits = opened.model(torch.tensor([ids_of(opened)])).logits[0]
    return logits.float().log_softmax(-1)


def moved(name: str, settings: dict[str, Any], targets: dict[str, Any]) -> LoadedModel:
    """The base with a random adapter of method `name`."""
    opened = load_base(BASE)
    method = Method.named(name)(**settings)
    lorica.adapt(opened.model, method, target_modules=LINEARS, **targets)
    _move(opened.model, SIZE)
    if name == "adalora":
        _prune(opened.model)
    return opened


def _move(model: nn.Module, size: float) -> None:
    """Move trainable tensors away from their start, as a run does. In place."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    bank = bank_of(model)
    bank.driven |= bank.specs.keys()


@torch.no_grad()
def _prune(model: nn.Module) -> None:
    """Other ranks at every layer, as AdaLoRA's budget leaves them. In place."""
    for i, (_, _, adapters) in enumerate(adapted_layers(model)):
        e: Any = adapters["default"].get_parameter("e")
        e *= 40  # a random e is small beside what training makes of it
        e[1 + i % len(e) :] = 0


def write_adapter(case: str, folder: Path) -> tuple[Path, Tensor]:
    """The adapter `case` of ADAPTERS as GGUF, and what transformers computes with it."""
    opened = moved(*ADAPTERS[case])
    want = expected(opened)
    lorica.export_lora(opened.model, folder / "lora", tokenizer=opened.tokenizer, base=BASE)
    write_lora(folder / "lora", BASE, folder / "lora.gguf")
    return folder / "lora.gguf", want


def write_merged(case: str, folder: Path, dtype: Dtype) -> tuple[Path, Tensor]:
    """The base merged with the adapter `case` of MERGED as GGUF, and what it computes."""
    name, settings = MERGED[case]
    opened = moved(name, settings, {})
    save(opened.model, folder / "adapter", "default", tokenizer=opened.tokenizer, base_path=BASE)
    merge_to(folder / "adapter", folder / "merged", base=BASE, dtype="float32")
    write_model(folder / "merged", folder / "merged.gguf", dtype=dtype)
    return folder / "merged.gguf", expected(opened)


def compare_model(
    model: Path, want: Tensor, opened: LoadedModel, log: Path, *, as_shipped: bool
) -> Comparison:
    """A model alone, in llama.cpp. as_shipped: see llamacpp_server.py."""
    options = ["--as-shipped"] if as_shipped else []
    with serving("llamacpp", *options, model, log=log) as address:
        got = log_probabilities(address, ids_of(opened), want.shape[1])
    return _compared(got, want)


def compare_adapters(
    model: Path,
    adapters: Mapping[str, tuple[Path, Tensor]],
    opened: LoadedModel,
    log: Path,
    *,
    as_shipped: bool,
) -> dict[str, Comparison]:
    """Adapters by name, all on one server; "base": without any."""
    base, files = expected(opened), [file for file, _ in adapters.values()]
    options = ["--as-shipped"] if as_shipped else []
    ids = ids_of(opened)
    with serving("llamacpp", *options, model, *files, log=log) as address:
        plain = log_probabilities(address, ids, base.shape[1], [0.0] * len(files))
        results = {"base": _compared(plain, base)}
        for i, (name, (_, want)) in enumerate(adapters.items()):
            scales = [float(i == other) for other in range(len(files))]
            got = log_probabilities(address, ids, base.shape[1], scales)
            effect = (want - base).abs().max().item()
            results[name] = _compared(got, want, effect)
    return results


def compare_tiny(name: str, folder: Path, **settings: Any) -> dict[str, Comparison]:
    """A model of tiny_models.py: "base", and "adapter", with a LoRA on its linear layers.

    settings: of its config, changed.

    Raises: AssertionError if llama.cpp cuts a text into other tokens.
    """
    base = tiny_models.write(name, folder / "base", **settings)
    write_model(base, folder / "base.gguf", dtype="f32")
    opened = load_base(str(base))
    plain = _tiny_expected(opened)
    gpt2 = ["c_attn", "c_proj", "c_fc"]
    lorica.adapt(
        opened.model, lorica.Lora(r=3, alpha=7), target_modules=gpt2 if name == "gpt2" else LINEARS
    )
    _move(opened.model, 0.1)
    adapted = _tiny_expected(opened)
    save(opened.model, folder / "lora", "default", base_path=str(base))
    write_lora(folder / "lora", str(base), folder / "lora.gguf")
    rows, files = plain.shape[1], (folder / "base.gguf", folder / "lora.gguf")
    with serving("llamacpp", *files, log=folder / "log") as address:
        _check_tokens(address, opened.tokenizer, rare=name != "mistral")
        got = [log_probabilities(address, IDS, rows, [scale]) for scale in (0.0, 1.0)]
    effect = (adapted - plain).abs().max().item()
    return {"base": _compared(got[0], plain), "adapter": _compared(got[1], adapted, effect)}


def _tiny_expected(opened: LoadedModel) -> Tensor:
    with torch.no_grad():
        return opened.model(torch.tensor([IDS])).logits[0].float().log_softmax(-1)


def _check_tokens(address: str, tokenizer: Any, *, rare: bool) -> None:
    """rare: also for what llama.cpp's "tekken" cuts otherwise, which write_model says."""
    for text in tiny_tokenizers.TEXTS:
        if rare or text not in RARE.values():
            text = normalize("NFC", text)  # llama.cpp does not, for Qwen's: a notice too
            assert tokens_of(address, text, special=True) == tokenizer(text)["input_ids"], text


def _compared(got: Tensor, want: Tensor, effect: float = 0.0) -> Comparison:
    difference = (got - want).abs()
    return Comparison(difference.max().item(), difference.mean().item(), effect)
