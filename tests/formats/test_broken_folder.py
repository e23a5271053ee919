"""An adapter folder is loaded as it was saved, or refused by name with the model untouched."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorica
from lorica.core.bank import adapted_layers
from lorica.errors import (
    FileError,
    LoricaError,
)
from tests.laws.bases import CASES, Stack, bits, same_bits, trained

STACK = CASES[0]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    return lorica.save(trained("lora", STACK), tmp_path / "adapter")


def tensors(change: Callable[[dict], object], digest: bool = True) -> Callable[[Path], None]:
    """Write the weights anew after `change`, and bring the digests up to date."""

    def apply(path: Path) -> None:
        state = {key: tensor.clone() for key, tensor in load_file(path / WEIGHTS).items()}
        change(state)
        save_file(state, path / WEIGHTS)
        if digest:
            renew(path)

    return apply


def renew(path: Path) -> None:
    from lorica.formats.commit import digest

    note = json.loads((path / "manifest.json").read_text())
    note["files"] = {name: digest(path / name) for name in note["files"]}
    (path / "manifest.json").write_text(json.dumps(note))


def manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        note = json.loads((path / "manifest.json").read_text())
        change(note)
        (path / "manifest.json").write_text(json.dumps(note))

    return apply


def config(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        (path / "manifest.json").unlink()
        note = json.loads((path / "adapter_config.json").read_text())
        change(note)
        (path / "adapter_config.json").write_text(json.dumps(note))

    return apply


def cut(name: str, length: int) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        (path / name).write_bytes((path / name).read_bytes()[:length])
        if name != "manifest.json":
            renew(path)

    return apply


def flip(path: Path) -> None:
    data = bytearray((path / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (path / WEIGHTS).write_bytes(bytes(data))


def only_a_pickle(path: Path) -> None:
    (path / WEIGHTS).rename(path / "adapter_model.bin")


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def remove(path: Path) -> None:
    empty(path)
    path.rmdir()


UP = "base_model.model.layers.0.up.lora_A.weight"
NEW = "base_model.model.layers.0.sideways.lora_A.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor is missing": (tensors(lambda s: s.pop(UP)), r"missing +layers\.0\.up\.a"),
    "a tensor too many": (tensors(lambda s: s.update({NEW: torch.ones(2)})), r"extra .*sideways"),
    "a tensor is renamed": (tensors(lambda s: s.update({NEW: s.pop(UP)})), r"sideways"),
    "a tensor of another shape": (
        tensors(lambda s: s.update({UP: torch.ones(4, 13)})),
        r"\(4, 13\) -> \(4, 12\)",
    ),
    "a transposed tensor": (
        tensors(lambda s: s.update({UP: s[UP].T.contiguous()})),
        r"\(12, 4\) -> \(4, 12\)",
    ),
    "another rank": (tensors(lambda s: s.update({UP: torch.ones(2, 12)})), r"\(2, 12\)"),
    "a NaN": (tensors(lambda s: s[UP].fill_(torch.nan)), r"not_finite +layers\.0\.up\.a"),
    "an infinity": (tensors(lambda s: s[UP][0].fill_(torch.inf)), "not_finite"),
    "no tensor at all": (tensors(lambda s: s.clear()), "missing"),
    "the weights are cut short": (cut(WEIGHTS, 700), "damaged"),
    "the weights are empty": (cut(WEIGHTS, 0), "damaged"),
    "half a header": (cut(WEIGHTS, 5), "damaged"),
    "one bit is another": (flip, "not what was saved"),
    "a changed config": (
        lambda p: (p / "adapter_config.json").write_text("{}"),
        "adapter_config.json",
    ),
    "only a pickle": (only_a_pickle, "pickle"),
    "an empty folder": (empty, "not an adapter folder"),
    "no folder": (remove, "does not exist"),
    "no weights": (lambda p: (p / WEIGHTS).unlink(), "not an adapter folder"),
    "weights alone": (lambda p: [f.unlink() for f in p.glob("*.json")], "not an adapter folder"),
    "the manifest is cut short": (cut("manifest.json", 100), "manifest.json"),
    "the manifest is empty": (cut("manifest.json", 0), "manifest.json"),
    "the manifest is a list": (lambda p: (p / "manifest.json").write_text("[1]"), "list"),
    "the manifest is no text": (
        lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe\x00"),
        "manifest.json",
    ),
    "a manifest of a newer format": (
        manifest(lambda m: m.update({"format": 2, "base": {"new": 1}})),
        "format 2",
    ),
    "a newer format without what we need": (
        manifest(lambda m: (m.clear(), m.update({"format": 7}))),
        "format 7",
    ),
    "a manifest without its method": (manifest(lambda m: m.pop("method")), "lacks method"),
    "an unknown method": (manifest(lambda m: m["method"].update({"name": "lroa"})), "lroa"),
    "an unknown setting of the method": (manifest(lambda m: m["method"].update({"rr": 1})), "rr"),
    "an unknown target": (manifest(lambda m: m["targets"].update({"sites": 1})), "sites"),
    "rank 0": (manifest(lambda m: m["method"].update({"r": 0})), "damaged"),
    "a rank in words": (manifest(lambda m: m["method"].update({"r": "four"})), "four"),
    "a broken fingerprint": (manifest(lambda m: m["base"].pop("shapes")), "fingerprint"),
    "weights that the manifest does not know": (
        manifest(lambda m: m["files"].pop(WEIGHTS)),
        WEIGHTS,
    ),
    "an unknown PEFT setting": (config(lambda c: c.update({"lora_new": 3})), "lora_new 3"),
    "an unknown PEFT method": (config(lambda c: c.update({"peft_type": "OFT"})), "OFT"),
    "a PEFT config of no kind": (config(lambda c: c.pop("peft_type")), "peft_type"),
    "a PEFT config without targets": (
        config(lambda c: c.update(target_modules=[])),
        "target_modules",
    ),
    "a PEFT rank that does not fit": (config(lambda c: c.update({"r": 5})), r"\(4, 12\) -> \(5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named_and_the_model_is_untouched(case, folder):
    spoil, words = BROKEN[case]
    spoil(folder)
    model = Stack()
    before, flags = bits(model), [p.requires_grad for p in model.parameters()]
    with pytest.raises(FileError, match=words) as error:
        lorica.load(model, folder)
    assert error.value.exit_code == 6
    assert not list(adapted_layers(model))
    assert same_bits(before, model.state_dict())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(STACK.run(model), STACK.run(Stack()))
    again = pickle.loads(pickle.dumps(error.value))
    assert (type(again), str(again)) == (type(error.value), str(error.value))


@pytest.mark.parametrize("case", ["a tensor is missing", "a NaN", "one bit is another"])
def test_a_broken_folder_leaves_the_other_adapter_acting(case, folder):
    BROKEN[case][0](folder)
    model = trained("dora", STACK, seed=9)
    want = STACK.run(model)
    learns = [n for n, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(FileError):
        lorica.load(model, folder, name="second")
    assert torch.equal(STACK.run(model), want)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == learns


def test_everything_that_is_wrong_is_said_at_once(folder):
    def spoil(state: dict) -> None:
        state[NEW] = state.pop(UP)
        state[UP.replace("layers.0", "layers.1")] = torch.ones(3, 3)
        state[UP.replace("up", "down")].fill_(torch.nan)

    tensors(spoil)(folder)
    with pytest.raises(FileError) as error:
        lorica.load(Stack(), folder)
    for words in ("layers.0.up.a", "sideways", "(3, 3) -> (4, 12)", "layers.0.down.a"):
        assert words in str(error.value)


def scrambled(value: object) -> list[object]:
    """Values of other types than `value`."""
    others: list[object] = [None, 3, -1.5, "x", [], ["x"], {}, {"x": 1}, True]
    return [o for o in others if o != value]


def test_no_scrambled_manifest_gets_past_us(folder):
    """Whatever stands in the place of any one value: an error of ours, or the same adapter."""
    whole = json.loads((folder / "manifest.json").read_text())
    places = [(k,) for k in whole] + [
        (k, inner) for k in ("method", "targets", "base", "files") for inner in whole[k]
    ]
    want = STACK.run(trained("lora", STACK))
    for place in places:
        inner = whole[place[0]] if len(place) == 2 else whole
        for other in scrambled(inner[place[-1]]):
            note = json.loads(json.dumps(whole))
            (note[place[0]] if len(place) == 2 else note)[place[-1]] = other
            (folder / "manifest.json").write_text(json.dumps(note))
            model = Stack()
            try:
                lorica.load(model, folder)
            except LoricaError:
                assert not list(adapted_layers(model))
            except Exception as error:
                raise AssertionError(f"{place} = {other!r}: {error!r}") from error
            else:
                if place not in {("method", "alpha"), ("method", "use_rslora")}:
                    assert torch.equal(STACK.run(model.eval()), want), (place, other)


def test_a_folder_without_manifest_says_what_cannot_be_verified(folder):
    (folder / "manifest.json").unlink()
    (line,) = lorica.load(Stack(), folder)
    assert "cannot be verified" in line
    assert "manifest.json" in line


def test_the_mend_for_a_pickle_mends_it(folder):
    state = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
    only_a_pickle(folder)
    torch.save(state, folder / "adapter_model.bin")
    (folder / "manifest.json").unlink()
    with pytest.raises(FileError) as error:
        lorica.load(Stack(), folder)
    assert error.value.fix
    code = error.value.fix.partition('python -c "')[2].removesuffix('"')
    exec(code, {})
    model = Stack()
    lorica.load(model, folder)
    assert torch.equal(STACK.run(model), STACK.run(trained("lora", STACK)))


def test_an_adapter_one_folder_below_is_pointed_at(folder):
    with pytest.raises(FileError) as error:
        lorica.load(Stack(), folder.parent)
    assert error.value.facts["adapters_inside"] == "adapter"
