"""Weighted sums of adapters by `lorica combine`, and by PEFT's `add_weighted_adapter`.

    python -m benchmarks.combine [--write docs/guides/combine-measured.md]

Adapters with random numbers on a small random Llama, saved by lorica and read by PEFT. The change
of every adapted weight is compared with the sum that is written out by hand; a figure is the
Frobenius norm of the difference over that of the sum, the largest of all layers.
"""

import argparse
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

import lorica
from lorica.base.bundled import FOLDER
from lorica.core.draws import drawing
from lorica.methods.dora import Dora
from lorica.methods.lora import Lora

RESULTS = Path(__file__).parent / "results/combine.json"
RANK = 4
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "LoRA": (lambda: Lora(r=RANK, alpha=8), {}),
    "rsLoRA": (lambda: Lora(r=RANK, alpha=8, use_rslora=True), {}),
    "ranks by pattern": (lambda: Lora(r=RANK, alpha=8), {"rank_pattern": {"q_proj": 2}}),
    "scales by pattern": (lambda: Lora(r=RANK, alpha=8), {"alpha_pattern": {"q_proj": 2}}),
    "DoRA": (lambda: Dora(r=RANK, alpha=8), {}),
}
SUMS: dict[str, list[tuple[str, float]]] = {
    "1.0 a": [("a", 1.0)],
    "0.5 a + 0.5 a": [("a", 0.5), ("a", 0.5)],
    "0.7 a + 0.3 b": [("a", 0.7), ("b", 0.3)],
    "0.7 a - 0.3 b": [("a", 0.7), ("b", -0.3)],
}
VOCABULARY = json.loads((FOLDER / "config.json").read_text())["vocab_size"]
WAYS = ("linear", "cat", "svd")
Changes = Mapping[str, Tensor]
OPENING = """\
# Sums of adapters: measured

Written by `python -m benchmarks.combine --write docs/guides/combine-measured.md`; do not edit by
hand.

A figure is how far the change of a weight is from the weighted sum of the adapters' changes, as a
share of that sum: the Frobenius norm, the largest of all layers. `lorica combine` has its default
method, and for DoRA, whose sum is no LoRA, the full rank. *refused*: an error. PEFT's `linear` adds
up the factors, each with the root of its weight, which is another sum by design; its `svd` may
have as many components as the sum has.
"""


def small_llama() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with drawing(0):
        return AutoModelForCausalLM.from_config(config).eval()


def write_adapters(kind: str, root: Path) -> dict[str, Path]:
    """Two adapters of a kind, on the base in root/base."""
    make, targets = KINDS[kind]
    folders = {}
    for seed, name in enumerate("ab"):
        model = small_llama()
        lorica.adapt(model, make(), **targets)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        folders[name] = Path(lorica.save(model, root / name, base_path=str(root / "base")))
    return folders


def changes_of(folder: Path) -> Changes:
    """W' - W of every adapted layer, by lorica's merge."""
    base, model = small_llama().state_dict(), small_llama()
    lorica.load(model, folder)
    lorica.merge(model)
    changes = {name: tensor - base[name] for name, tensor in model.state_dict().items()}
    return {name: change for name, change in changes.items() if change.any()}


def summed(parts: list[tuple[str, float]], folders: Mapping[str, Path]) -> Changes:
    total: dict[str, Tensor] = {}
    for name, weight in parts:
        for key, change in changes_of(folders[name]).items():
            total[key] = total.get(key, torch.zeros_like(change)) + weight * change
    return total


def error(got: Changes, want: Changes) -> float:
    nothing = {key: torch.zeros_like(tensor) for key, tensor in want.items()}
    return max(
        float((got.get(key, nothing[key]) - tensor).norm() / tensor.norm())
        for key, tensor in want.items()
    )


def by_lorica(parts: list[tuple[str, float]], folders: Mapping[str, Path], root: Path) -> Changes:
    methods = [json.loads((f / "manifest.json").read_text())["method"] for f in folders.values()]
    rank = 64 if any(method["name"] == "dora" for method in methods) else None
    output = root / "sum"
    lorica.combine([(folders[n], w) for n, w in parts], output, base=str(root / "base"), rank=rank)
    return changes_of(output)


def by_peft(
    parts: list[tuple[str, float]], folders: Mapping[str, Path], way: str
) -> Changes | None:
    """None: PEFT refuses."""
    base = small_llama()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = peft.PeftModel.from_pretrained(base, str(folders["a"]), adapter_name="a")
        model.load_adapter(str(folders["b"]), adapter_name="b")
        try:
            names, weights = [n for n, _ in parts], [w for _, w in parts]
            whole = {"svd_rank": RANK * len(parts)} if way == "svd" else {}
            model.add_weighted_adapter(names, weights, "sum", combination_type=way, **whole)
            model.set_adapter("sum")
            merged = model.merge_and_unload(adapter_names=["sum"])
        except (ValueError, RuntimeError, NotImplementedError):
            return None
    return {name: tensor - before[name] for name, tensor in merged.state_dict().items()}


def measure() -> dict[str, dict[str, dict[str, float | None]]]:
    """kind -> sum -> who -> error; None: refused."""
    table: dict[str, dict[str, dict[str, float | None]]] = {}
    for kind in KINDS:
        table[kind] = {}
        for title, parts in SUMS.items():
            with TemporaryDirectory() as folder:
                root = Path(folder)
                small_llama().save_pretrained(root / "base")
                for file in FOLDER.glob("token*"):
                    shutil.copy(file, root / "base")
                folders = write_adapters(kind, root)
                want = summed(parts, folders)
                row: dict[str, float | None] = {
                    "lorica": error(by_lorica(parts, folders, root), want)
                }
                for way in WAYS:
                    got = by_peft(parts, folders, way)
                    row[f"PEFT {way}"] = None if got is None else error(got, want)
                table[kind][title] = row
                print(kind, title, row, flush=True)
    return table


def page(table: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    columns = ["lorica", *(f"PEFT {way}" for way in WAYS)]
    lines = [f"| adapters | sum | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
    for kind, sums in table.items():
        for title, row in sums.items():
            cells = " | ".join(_cell(row[column]) for column in columns)
            lines.append(f"| {kind} | {title} | {cells} |")
    return OPENING + f"\nPEFT {peft.__version__}.\n\n" + "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return "refused"
    return f"{value:.1e}" if value < 1e-3 else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.combine", description=__doc__)
    parser.add_argument("--write", type=Path, help="write the page from the last measurement")
    given = parser.parse_args()
    if given.write is None:
        RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
        return
    given.write.write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
