"""Rows, bases and settings for the tests of plans: no weights, no torch."""

import json

from lorica.recipe.method_settings import method_from_source
from lorica.training.config import read

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}


def write_base(folder, **config):
    """A folder that holds config.json alone."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA_7B, **config}))
    return str(folder)


def write_rows(path, count=60):
    rows = [
        {
            "prompt": f"The lamp of my uncle is broken. {i}: " + "It was blue. " * (i % 7),
            "completion": f" lamp {i}" + " and a radio" * (i % 5),
        }
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def settings(data, base="bundled", **given):
    return read(None, {"data": data, "base": base, **given}, check_method=method_from_source)
