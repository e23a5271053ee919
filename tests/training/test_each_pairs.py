"""Every two methods train at once on one base, in either order, each on layers of its own choice.

The slow suite has each method first once and second once, `make test-full` every pair.
Each adapter is the one that its run gives alone, up to the rounding of the base's products, which
depends on the number of tokens. B-LoRA's grids enlarge that rounding, so its runs only have to end.
"""

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import lorica
from lorica.core.adapter import Method
from lorica.errors import ConfigError
from lorica.training.each import _try_route
from lorica.training.train import train
from tests.core.attention_models import tiny
from tests.marks import at_length, slow_but
from tests.training.rows import adapter, rounding_apart, settings, tiny_base, write_rows

SMALL = {
    "alora": {"rounds": 1},
    "adalora": {"r": 4, "target_r": 2, "tinit": 0, "tfinal": 1},
    "bottleneck": {"r": 4},
    "dora": {"r": 2},
    "lora": {"r": 4},
    "mora": {"r": 4},
    "vera": {"r": 8},
}
TARGETS = {
    "bottleneck": [None, ["o_proj", "down_proj"]],
    "ia3": [None, ["k_proj", "down_proj"]],
}
REFUSED = ("full", "hyperlora", "llama_adapter", "prefix_tuning", "prompt_tuning")
METHODS = [name for name in Method.names() if name not in REFUSED]
QUICK = [("dora", "bottleneck")]
NEXT = list(zip(METHODS, METHODS[1:] + METHODS[:1], strict=True))
OWN = [(name, name) for name in METHODS]
PAIRS = at_length([*permutations(METHODS, 2), *OWN], [*QUICK, *NEXT, *OWN[:1]])


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """The adapter that a run gives by itself; every run is trained once."""
    folder, trained = tmp_path_factory.mktemp("alone"), {}

    def of(name: str, place: int) -> dict[str, Tensor]:
        if (name, place) not in trained:
            result = train(**run_of(base, folder, name, place), show=False)
            trained[name, place] = adapter(result.folder)
        return trained[name, place]

    return of


def run_of(base: Path, folder: Path, name: str, place: int) -> dict:
    """Two steps of a method; the runs at places 0 and 1 differ in layers, rows, seed and rate."""
    folder.mkdir(exist_ok=True)
    rows = folder / f"rows-{place}.jsonl"
    if not rows.exists():
        write_rows(rows, 8 + place)
    targets = TARGETS.get(name, ["all-linear", ["q_proj", "v_proj", "up_proj"]])[place]
    return settings(
        base,
        folder,
        method={"name": name, **SMALL.get(name, {})},
        target_modules=targets,
        data={"path": str(rows)},
        seed=place,
        learning_rate=2e-3 * (1 + place),
        max_steps=2,
        micro_batch_size=2 + place,
        save_steps=2,
        output=str(folder / f"{name}-{place}"),
    )


@pytest.mark.parametrize(
    ("first", "second"),
    slow_but(QUICK, dict.fromkeys(PAIRS)),
)
def test_each_adapter_is_the_one_of_its_run_alone(base, alone, tmp_path, first, second):
    runs = [run_of(base, tmp_path, name, place) for place, name in enumerate((first, second))]
    results = lorica.train_each(runs, show=False)
    for place, (name, result) in enumerate(zip((first, second), results, strict=True)):
        if name == "blora":
            continue
        assert rounding_apart(adapter(result.folder), alone(name, place), runs[place]), name


@pytest.mark.parametrize("name", REFUSED)
def test_other_methods_are_refused_by_name(base, tmp_path, name):
    runs = [run_of(base, tmp_path, "lora", 0), run_of(base, tmp_path, name, 1)]
    runs[1]["target_modules"] = None
    with pytest.raises(ConfigError, match=f"{name}-1|hyperlora"):
        lorica.train_each(runs, show=False)


def test_a_layer_that_receives_other_tokens_is_refused_before_the_first_step(monkeypatch):
    """As the experts of a mixture do: here the feed-forward layer flattens its input."""
    model = lorica.adapt(tiny("Llama"), lorica.Lora(r=2))
    mlp: Any = model.get_submodule("model.layers.0.mlp")
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: forward(x.flatten(0, 1)).view_as(x))
    with pytest.raises(ConfigError, match=r"layer model.layers.0.mlp.gate_proj received"):
        _try_route(model, "default")
