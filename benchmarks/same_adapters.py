"""Same adapters as another commit? `python -m benchmarks.same_adapters TREE`

TREE: a checkout of the other commit. A fixed list of recipes (every method; packed, padded,
accumulated, with dropout, shared prefixes, activation checkpointing, several runs at once, a
resumed run) is trained for a few steps on the bundled base with both trees, on one thread. All
tensors of every adapter and all losses must be equal, bit for bit.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
WORDS = ["cat", "dog", "bird", "fish", "tree", "house", "river", "stone", "cloud", "field"]
LORA = {"name": "lora", "r": 4}
METHODS: list[dict[str, Any]] = [
    {"name": "adalora", "r": 4, "target_r": 2, "tinit": 1, "tfinal": 1},
    {"name": "aflora", "r": 4},
    {"name": "alora", "r": 2, "rounds": 2},
    {"name": "blora", "r": 4, "zero_start": True},
    {"name": "bottleneck"},
    {"name": "dora", "r": 4},
    {"name": "dora_dynamic", "r": 4},
    {"name": "double_lora", "r": 4, "second_after": 2},
    {"name": "full"},
    {"name": "hyperlora", "r": 2, "latent": 16, "hidden": 4},
    {"name": "ia3"},
    {"name": "llama_adapter"},
    {"name": "lora_fa", "r": 4},
    {"name": "mora", "r": 4},
    {"name": "prefix_tuning"},
    {"name": "prompt_tuning"},
    {"name": "vera", "r": 16},
]
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "dropout": {"method": {**LORA, "dropout": 0.2}},
    "checkpointing": {"method": {**LORA, "dropout": 0.1}, "gradient_checkpointing": True},
    "classifier, padded": {"data": "labels"},
    "shared prefixes": {"data": "alike"},
    "pissa": {"method": {**LORA, "init": "pissa"}},
    "eva": {"method": {**LORA, "init": "eva"}},
    "sgd": {"optimizer": "sgd", "learning_rate": None, "weight_decay": 0.01, "warmup_steps": 2},
    "bfloat16": {"dtype": "bfloat16"},
    "whole head": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "v_proj"]},
    "token rows": {"trainable_token_indices": "5,9", "target_modules": ["q_proj"]},
    "early stop": {"eval_steps": 2, "early_stopping_patience": 1, "learning_rate": 5e-2},
}
TOGETHER: dict[str, list[tuple[dict[str, Any], str]]] = {
    "together": [(LORA, "plain"), ({"name": "dora", "r": 2}, "other")],
    "together, dropout": [
        ({**LORA, "dropout": 0.2}, "plain"),
        ({"name": "vera", "r": 16}, "other"),
        ({"name": "mora", "r": 4}, "plain"),
    ],
}


def rows_of(kind: str) -> list[dict[str, Any]]:
    if kind == "labels":
        texts = [
            f"the {WORDS[i % 10]} ran {WORDS[i * 7 % 10]}" + " far" * (i % 5) for i in range(40)
        ]
        return [{"text": text, "label": ["no", "yes"][i % 2]} for i, text in enumerate(texts)]
    if kind == "alike":
        begin = "Once upon a time there was a very old house by the river and in it "
        return [{"prompt": begin, "completion": f"a {WORDS[i % 10]} slept"} for i in range(40)]
    rows = [
        {
            "prompt": f"Once {WORDS[i % 10]} " * (1 + i % 4),
            "completion": f"the {WORDS[i * 3 % 10]} ran to {WORDS[i * 7 % 10]} " * (1 + i % 3),
        }
        for i in range({"plain": 40, "other": 33, "conditions": 40}[kind])
    ]
    if kind == "conditions":
        rows = [{**row, "condition": WORDS[i % 3]} for i, row in enumerate(rows)]
    return rows


class Trainings:
    """Runs of the package that is imported, in a folder of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        for kind in ("plain", "other", "conditions", "labels", "alike"):
            lines = (json.dumps(row) + "\n" for row in rows_of(kind))
            (folder / f"{kind}.jsonl").write_text("".join(lines))

    def settings(self, name: str, *, data: str = "plain", **settings: Any) -> dict[str, Any]:
        return {
            "base": "bundled",
            "data": {"path": str(self.folder / f"{data}.jsonl"), "validation": 0.1},
            "method": LORA,
            "learning_rate": 5e-3,
            "max_steps": 6,
            "micro_batch_size": 4,
            "save_steps": 3,
            "seed": 1,
            "output": str(self.folder / name.replace(", ", "-").replace(" ", "-")),
            **settings,
        }

    def all(self) -> dict[str, str]:
        """The digest of what each recipe trained."""
        import lorica

        digests: dict[str, str] = {}
        recipes = dict(SETTINGS)
        for method in METHODS:
            conditions = {"data": "conditions"} if method["name"] == "hyperlora" else {}
            recipes[method["name"]] = {"method": method, **conditions}
        for name, changed in recipes.items():
            run = self.settings(name, **changed)
            lorica.train(show=False, **run)
            digests[name] = digest(run["output"])
            print(f"{name:24} {digests[name]}", flush=True)
        for name, parts in TOGETHER.items():
            runs = [
                self.settings(f"{name} {i}", method=method, data=data, seed=i)
                for i, (method, data) in enumerate(parts)
            ]
            lorica.train_each(runs, show=False)
            digests[name] = " ".join(digest(run["output"]) for run in runs)
            print(f"{name:24} {digests[name]}", flush=True)
        run = self.settings("resumed", method={**LORA, "dropout": 0.1}, schedule="constant")
        lorica.train(show=False, **{**run, "warmup_ratio": 0.0, "max_steps": 3})
        lorica.train(resume=run["output"], show=False, max_steps=6)
        digests["resumed"] = digest(run["output"])
        return digests


def digest(run: str) -> str:
    """Of all tensors of the run's adapter, and of all losses of its log."""
    import torch
    from safetensors.torch import load_file

    (file,) = Path(run, "adapter").glob("*.safetensors")
    total = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        total.update(name.encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    events = map(json.loads, Path(run, "events.jsonl").read_text().splitlines())
    total.update(json.dumps([event["loss"] for event in events if "loss" in event]).encode())
    return total.hexdigest()[:16]


def digests_of(tree: Path) -> dict[str, str]:
    """Those that the package in `tree` gives, in a process of its own."""
    print(tree)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "digests.json"
        env = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, __file__, "--write", str(out)]
        subprocess.run(words, check=True, env=env, cwd=folder)
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_adapters",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("tree", type=Path, nargs="?")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.write:
        words.write.write_text(json.dumps(Trainings(words.write.parent).all()))
        return
    if words.tree is None:
        parser.error("name a checkout of the other commit")
    other, here = digests_of(words.tree.resolve()), digests_of(HERE)
    different = [name for name in here if here[name] != other[name]]
    print(f"{len(here) - len(different)} of {len(here)} recipes give the same adapter and losses")
    if different:
        raise SystemExit(f"different: {', '.join(different)}")


if __name__ == "__main__":
    main()
