"""Adapters and models as GGUF, compared with transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

from torch import Tensor

import lorica
from benchmarks.runtimes import tiny_models, tiny_tokenizers
from benchmarks.runtimes.adapters import (
    ADAPTERS,
    BASE,
    LINEARS,
    MERGED,
    Comparison,
    compared,
    ids_of,
    log_probabilities_of,
    move,
    written,
)
from benchmarks.runtimes.llamacpp import log_probabilities, tokens_of
from benchmarks.runtimes.server import serving
from lorica.base.load import LoadedModel
from lorica.base.load import load as load_base
from lorica.formats.merge import merge_to
from lorica.formats.save import save
from lorica.handover.gguf.lora import write_lora
from lorica.handover.gguf.model import write_model
from lorica.handover.gguf.pre_tokenizers import RARE
from lorica.handover.gguf.writer import Dtype

IDS = [1, *(3 + 37 * i % 350 for i in range(39))]
"""Of the tiny models; more than their windows of sliding attention hold."""


def write_adapter(name: str, folder: Path) -> tuple[Path, Tensor]:
    """The adapter `name` of ADAPTERS as GGUF, and what transformers computes with it."""
    case = ADAPTERS[name]
    adapter, want = written(case, folder / "adapter")
    lorica.export_lora(adapter, folder / "lora", condition=case.condition, base=BASE)
    write_lora(folder / "lora", BASE, folder / "lora.gguf")
    return folder / "lora.gguf", want


def write_merged(name: str, folder: Path, dtype: Dtype) -> tuple[Path, Tensor]:
    """The base merged with the adapter `name` of MERGED as GGUF, and what it computes."""
    adapter, want = written(MERGED[name], folder / "adapter")
    merge_to(adapter, folder / "merged", base=BASE, dtype="float32")
    write_model(folder / "merged", folder / "merged.gguf", dtype=dtype)
    return folder / "merged.gguf", want


def compare_model(
    model: Path, want: Tensor, opened: LoadedModel, log: Path, *, as_shipped: bool
) -> Comparison:
    """A model alone, in llama.cpp. as_shipped: see llamacpp_server.py."""
    options = ["--as-shipped"] if as_shipped else []
    with serving("llamacpp", *options, model, log=log) as address:
        got = log_probabilities(address, ids_of(opened), want.shape[1])
    return compared(got, want)


def compare_adapters(
    model: Path,
    adapters: Mapping[str, tuple[Path, Tensor]],
    opened: LoadedModel,
    log: Path,
    *,
    as_shipped: bool,
) -> dict[str, Comparison]:
    """Adapters by name, all on one server; "base": without any."""
    ids, files = ids_of(opened), [file for file, _ in adapters.values()]
    base = log_probabilities_of(opened, ids)
    options = ["--as-shipped"] if as_shipped else []
    with serving("llamacpp", *options, model, *files, log=log) as address:
        plain = log_probabilities(address, ids, base.shape[1], [0.0] * len(files))
        results = {"base": compared(plain, base)}
        for i, (name, (_, want)) in enumerate(adapters.items()):
            scales = [float(i == other) for other in range(len(files))]
            got = log_probabilities(address, ids, base.shape[1], scales)
            results[name] = compared(got, want, base)
    return results


def compare_tiny(name: str, folder: Path, **settings: Any) -> dict[str, Comparison]:
    """A model of tiny_models.py: "base", and "adapter", with a LoRA on its linear layers.

    settings: of its config, changed.

    Raises: AssertionError if llama.cpp cuts a text into other tokens.
    """
    base = tiny_models.write(name, folder / "base", **settings)
    write_model(base, folder / "base.gguf", dtype="f32")
    opened = load_base(str(base))
    plain = log_probabilities_of(opened, IDS)
    gpt2 = ["c_attn", "c_proj", "c_fc"]
    lorica.adapt(
        opened.model, lorica.Lora(r=3, alpha=7), target_modules=gpt2 if name == "gpt2" else LINEARS
    )
    move(opened.model, 0.1)
    adapted = log_probabilities_of(opened, IDS)
    save(opened.model, folder / "lora", "default", base_path=str(base))
    write_lora(folder / "lora", str(base), folder / "lora.gguf")
    rows, files = plain.shape[1], (folder / "base.gguf", folder / "lora.gguf")
    with serving("llamacpp", *files, log=folder / "log") as address:
        _check_tokens(address, opened.tokenizer, rare=name != "mistral")
        got = [log_probabilities(address, IDS, rows, [scale]) for scale in (0.0, 1.0)]
    return {"base": compared(got[0], plain), "adapter": compared(got[1], adapted, plain)}


def _check_tokens(address: str, tokenizer: Any, *, rare: bool) -> None:
    """rare: also for what llama.cpp's "tekken" cuts otherwise, which write_model says."""
    for text in tiny_tokenizers.TEXTS:
        if rare or text not in RARE.values():
            text = normalize("NFC", text)  # llama.cpp does not, for Qwen's: a notice too
            assert tokens_of(address, text, special=True) == tokenizer(text)["input_ids"], text
