"""2,000 damaged files, odd settings and odd rows: none ends outside of the contract.

The slow suite tries every eighth input, `make attack` and `make test-full` all of them.
`ATTACK_LOG=FILE pytest -m slow tests/attack` writes down what each input was answered.
"""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.attack import mutations
from tests.attack.arena import Arena, Attack
from tests.attack.good import ROWS, write_all
from tests.marks import at_length

pytestmark = pytest.mark.slow

EVERY = at_length(1, 8)
BASE, ADAPTER, STEP = Path("base"), Path("run/adapter"), Path("half/checkpoints/step-00000004")
GENERATE = ("generate", "--base", "base", "--prompt", "ab", "--max_new_tokens", "2")
CHECK = ("check", "--base", "base", "--data", "rows.jsonl")
TRAIN = (
    "train",
    "--base",
    "base",
    "--data",
    "rows.jsonl",
    "--max_steps",
    "1",
    "--output",
    "out",
    "--method.r",
    "2",
    "--data.validation",
    "0.25",
)
EVAL = ("eval", "run", "--base", "base", "--data", "rows.jsonl", "--no-exact-match")
RESUME = ("train", "--resume", "half")
INFO = ("info", "run")
WHOLE: list[tuple[str, ...]] = [
    GENERATE,
    CHECK,
    TRAIN,
    EVAL,
    RESUME,
    INFO,
    ("merge", "run", "--output", "out"),
    ("export", "run", "--output", "out"),
]


@pytest.fixture(scope="session")
def arena(tmp_path_factory) -> Arena:
    folder = tmp_path_factory.mktemp("arena")
    good, here = folder / "good", Path.cwd()
    good.mkdir()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or it warns of the fork
    os.chdir(good)
    try:
        write_all(Path())
    finally:
        os.chdir(here)
    return Arena(good, folder / "place")


def hold(arena: Arena, attacks: Iterator[Attack] | list[Attack], least: int) -> None:
    """Fails with every input that breaks the contract, and if there are fewer than `least`."""
    attacks = list(attacks)
    assert len(attacks) >= least
    found = arena.violations(attacks[::EVERY])
    assert not found, "\n".join(found)


def test_the_good_files_are_good(arena):
    """Else every attack would be refused for another reason than its own."""
    for words in WHOLE:
        wanted = [Attack(" ".join(words), words, lambda: None)]
        assert not arena.violations(wanted)
        assert arena.statuses[-1] == 0, words


FILES: dict[Path, tuple[tuple[str, ...], int]] = {  # the command, and one of how many mutations
    BASE / "config.json": (GENERATE, 3),
    BASE / "generation_config.json": (GENERATE, 2),
    BASE / "tokenizer.json": (CHECK, 3),
    BASE / "tokenizer_config.json": (CHECK, 2),
    BASE / "special_tokens_map.json": (CHECK, 2),
    ADAPTER / "adapter_config.json": (EVAL, 3),
    ADAPTER / "manifest.json": (EVAL, 5),
    STEP / "state.json": (RESUME, 5),
    Path("run/results.json"): (INFO, 5),
}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_json_files(arena, file):
    words, every = FILES[file]
    changes = itertools.chain(
        mutations.of_values(file, arena.good, every), mutations.of_text(file, arena.good)
    )
    hold(arena, [Attack(name, words, write) for name, write in changes], 30)


def test_other_text_files(arena):
    files = {
        BASE / "chat_template.jinja": CHECK,
        Path("run/events.jsonl"): INFO,
        Path("half/events.jsonl"): RESUME,
        Path("half/config.yaml"): RESUME,
        Path("rows.jsonl"): CHECK,
    }
    hold(
        arena,
        [
            Attack(name, words, write)
            for file, words in files.items()
            for name, write in mutations.of_text(file, arena.good)
        ],
        75,
    )


VALUES = [
    "",
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e300",
    "nan",
    "inf",
    str(2**31),
    str(2**62),
    "1" + "0" * 29,
    "x",
    "a\0b",
    "[]",
    "{}",
    "[[1]]",
    '{"x": 1}',
    "a{99999999999}",
    "(a+)+$|x",
    "x" * 100_000,
    "\udcff",
    "../outside/file",
    "/dev/zero",
    "/",
]


def test_settings(arena):
    from lorica.recipe.validate import setting_names
    from lorica.training.config import TrainConfig

    odd = {"split", "peer"}  # they wait for another process
    settings = [n for n in setting_names(TrainConfig) if n not in odd] + [
        "method.r",
        "method.alpha",
        "method.dropout",
    ]
    words = ("train", "--base", "base", "--data", "rows.jsonl", "--max_steps", "1")
    pairs = [(name, value) for name in settings for value in VALUES]
    attacks = []
    for number, (name, value) in enumerate(pairs):
        if number % 3 == 0 and (name, value) != ("output", "/"):
            more = () if name == "output" else ("--output", "out")
            attacks.append(
                Attack(f"{name} {value[:40]!r}", (*words, *more, f"--{name}={value}"), lambda: None)
            )
    hold(arena, attacks, 300)


LONE = "\ud800"
SHAPES: list[object] = [
    {},
    [],
    1,
    "x",
    None,
    {"prompt": None},
    {"prompt": 1, "completion": 2},
    {"text": ""},
    {"text": None},
    {"text": "a\0b"},
    {"text": LONE},
    {"prompt": "a", "completion": LONE},
    {"text": "x", "label": "9" * 6000},
    {"text": "x", "label": 10**400},
    {"text": "x", "label": 1.5},
    {"text": "x", "label": None},
    {"text": "x", "label": []},
    {"messages": []},
    {"messages": 1},
    {"messages": [1]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"content": "x"}]},
    {"messages": [{"role": "user", "content": 1}]},
    {"messages": [{"role": LONE, "content": ""}]},
    {"conversations": [{"from": 1}]},
    {"messages": [{"role": "user", "content": mutations.DEEP}]},
    {"instruction": "x", "output": None},
    {"text": "x", "text2": mutations.DEEP},
    {"instruction": "x", "output": "y", "input": mutations.DEEP},
    {"text": "x" * 400_000},
    {"x" * 100_000: "y"},
    {"prompt": [], "completion": []},
    {"text": {"a": 1}},
    {"prompt": "a" * 300_000, "completion": "b"},
]


def rows(shape: object, count: int) -> Callable[[], object]:
    """rows.jsonl of `count` rows of this shape, or of good ones with one of it."""
    many = [shape] * count if count > 1 else [*ROWS, shape]
    return lambda: Path("rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in many))


def test_rows(arena):
    hold(
        arena,
        [
            Attack(f"row {number} times {count}", words, rows(shape, count))
            for number, shape in enumerate(SHAPES)
            for count in (1, 8)
            for words in (CHECK, TRAIN)
        ],
        130,
    )


def odd_file(path: Path, kind: str) -> Callable[[], object]:
    """Put a link, a pipe, a device or a folder in the place of a file."""

    def replace() -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        outside = Path("../outside")
        {
            "link": lambda: path.symlink_to(os.path.relpath(outside / "file", path.parent)),
            "link to a folder": lambda: path.symlink_to(os.path.relpath(outside, path.parent)),
            "nothing": lambda: path.symlink_to("nowhere"),
            "pipe": lambda: os.mkfifo(path),
            "device": lambda: path.symlink_to("/dev/zero"),
            "folder": path.mkdir,
        }[kind]()

    return replace


def test_files_that_are_none(arena):
    kinds = ("link", "link to a folder", "nothing", "pipe", "device", "folder")
    plain = [p.relative_to(arena.good) for p in sorted(arena.good.rglob("*"))]
    words_of = {"base": (GENERATE,), "rows.jsonl": (CHECK,), "run": (EVAL, INFO), "half": (RESUME,)}
    hold(
        arena,
        [
            Attack(f"{path} is a {kind}", words, odd_file(path, kind))
            for path in plain
            for kind in kinds
            for words in words_of[path.parts[0]]
        ],
        150,
    )


def tensors(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
    def write() -> None:
        save_file({k: change(t).contiguous() for k, t in load_file(path).items()}, path)
        mutations.sign(path)

    return write


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "integers": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "bytes": lambda t: t.to(torch.uint8),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "NaN": lambda t: t * float("nan"),
    "infinite": lambda t: t + float("inf"),
    "empty": lambda t: t.reshape(-1)[:0],
    "one more": lambda t: torch.stack([t, t]),
    "scalar": lambda t: t.sum(),
    "huge": lambda t: t * 1e30 + 1e30,
    "flat": lambda t: t.flatten(),
    "zero": lambda t: t * 0,
}


def test_tensors(arena):
    files = {ADAPTER / "adapter_model.safetensors": EVAL, BASE / "model.safetensors": GENERATE}
    files |= {STEP / "adapter.safetensors": RESUME, STEP / "optimizer.safetensors": RESUME}
    attacks = [
        Attack(f"{file}: {name}", words, tensors(file, change))
        for file, words in files.items()
        for name, change in CHANGES.items()
    ]
    cuts = [0, 7, 8, 100, -1, -1000]
    attacks += [
        Attack(f"{file}: first {n}", words, lambda f=file, n=n: f.write_bytes(f.read_bytes()[:n]))
        for file, words in files.items()
        for n in cuts
    ]
    attacks += [
        Attack(
            f"{file}: a header of {n}",
            words,
            lambda f=file, n=n: f.write_bytes(n.to_bytes(8, "little") + b"{" * 100),
        )
        for file, words in files.items()
        for n in (0, 1, 2**31, 2**62)
    ]
    hold(arena, attacks, 80)
