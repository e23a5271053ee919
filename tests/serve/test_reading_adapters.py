"""What the server takes from an adapter's folder: its bytes, limits, notes, recorded answers."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lorica
from lorica.base.fingerprint import fingerprint
from lorica.base.load import load as load_base
from lorica.core.bank import adapted_layers
from lorica.core.condition import with_conditions
from lorica.data.prompt_format import PromptFormat
from lorica.errors import ConfigError, FileError
from lorica.formats import adapter_file
from lorica.formats.golden import GOLDEN, read_golden
from lorica.methods.hyperlora import Hyperlora
from lorica.serve import folder_limits, reading
from lorica.serve.examination import Examiner
from lorica.serve.folder_limits import check_limits
from lorica.serve.notes import notes_of
from lorica.serve.reading import Reader
from tests.laws.bases import move
from tests.serve.fake_engine import write_adapter

WEIGHTS = "adapter_model.safetensors"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_adapter(tmp_path / "adapter", 1.5)


@pytest.fixture(scope="module")
def base(small_base):
    return load_base(str(small_base))


@pytest.fixture(scope="module")
def examiner(base, small_base):
    here = fingerprint(base.model, tokenizer=base.tokenizer)
    return Examiner(base, here, load_base(str(small_base)).model)


def save(base, small_base, path: Path, method="lora", **settings) -> Path:
    """An adapter that has moved, on the small base."""
    model = load_base(str(small_base)).model
    lorica.adapt(model, lorica.method(method, **({"r": 2} if method == "lora" else {})))
    return lorica.save(move(model), path, tokenizer=base.tokenizer, **settings)


def record(base, small_base, folder: Path, ids=(1, 300, 310, 320, 330)) -> None:
    """Write golden.jsonl beside an adapter."""
    model = load_base(str(small_base)).model
    lorica.load(model, folder, tokenizer=base.tokenizer)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    logprobs = logits.gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
    (folder / GOLDEN).write_text(json.dumps({"ids": ids, "logprobs": logprobs}) + "\n")


def change_recorded(folder: Path, **fields) -> None:
    row = json.loads((folder / GOLDEN).read_text())
    (folder / GOLDEN).write_text(json.dumps({**row, **fields}))


def test_what_was_read_does_not_change_with_the_file(folder):
    file = Reader().read(folder)
    before = {name: tensor.clone() for name, tensor in file.tensors.items()}
    with (folder / WEIGHTS).open("r+b") as weights:  # in place, and cut: a map would crash
        weights.truncate(10)
    assert all(torch.equal(file.tensors[name], before[name]) for name in before)
    with pytest.raises(FileError):
        Reader().read(folder)


def test_a_file_that_changes_between_its_digest_and_its_reading_is_refused(folder, monkeypatch):
    checked = adapter_file.commit.check_digests

    def then_change(path, files):
        checked(path, files)
        data = bytearray((folder / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (folder / WEIGHTS).write_bytes(bytes(data))

    monkeypatch.setattr(adapter_file.commit, "check_digests", then_change)
    with pytest.raises(FileError, match="was changed while it was read"):
        Reader().read(folder)


def test_a_file_that_goes_away_while_the_folder_is_read(folder, monkeypatch):
    monkeypatch.setattr(
        reading, "check_limits", lambda *_: (_ for _ in ()).throw(FileNotFoundError(2, "gone"))
    )
    with pytest.raises(FileError, match="was changed while it was read: gone"):
        Reader().read(folder)


def test_weights_are_limited_before_they_are_read(folder, monkeypatch):
    size = (folder / WEIGHTS).stat().st_size
    check_limits(folder, size)
    with pytest.raises(FileError, match=f"has {size:,} bytes; an adapter of this base has at most"):
        check_limits(folder, size - 1)
    monkeypatch.setattr(folder_limits, "MAX_TENSORS", 3)
    with pytest.raises(FileError, match="more than 3 tensors"):
        check_limits(folder, size)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + b"{")
    with pytest.raises(FileError, match="a header of 1,099,511,627,776 bytes"):
        check_limits(folder, size)


def test_notes_come_from_the_card_and_the_evaluation(tmp_path):
    folder = tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    assert notes_of(folder) == {}
    (folder / "README.md").write_text(
        "| | |\n|---|---|\n| base | x |\n| data | a \\| b.jsonl |\n| rows | 9 trained on |\n"
        f"| settings | {'long ' * 100}\x1b[31m |\n## How\n| held-out loss | of another table |\n"
    )
    measure = {"base": {"value": 0.25}, "adapter": {"value": 0.5}}
    report = {"rows": 200, "data": "x/test.jsonl", "measures": {"exact_match": measure, "loss": 3}}
    (tmp_path / "run" / "results.json").write_text(json.dumps({"evaluation": report}))
    notes = notes_of(folder)
    assert notes["data"] == "a | b.jsonl"
    assert notes["rows"] == "9 trained on"
    assert notes["exact match"] == "0.5, the base 0.25; 200 rows of test.jsonl"
    assert len(notes["settings"]) == 200
    assert notes.keys() == {"data", "rows", "settings", "exact match"}
    (tmp_path / "run" / "results.json").write_text("{")
    assert notes_of(folder)["evaluation"] == "its file cannot be read"


def test_the_notes_of_a_real_run(tmp_path, small_base):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Lily saw", "completion": " a red ball."}\n' * 8)
    run = tmp_path / "run"
    lorica.train(
        base=str(small_base),
        data=str(rows),
        output=str(run),
        max_steps=2,
        learning_rate=1e-2,
        method={"name": "lora", "r": 2},
    )
    lorica.evaluate(run, str(rows))
    file = Reader().read(run)
    notes = notes_of(file.folder)
    assert notes["data"].startswith("rows.jsonl, sha256")
    assert notes["settings"].startswith("2 steps")


def test_recorded_answers_are_replayed(examiner, base, small_base, tmp_path):
    folder = save(base, small_base, tmp_path / "adapter")
    record(base, small_base, folder)
    examiner.examine(examiner.read(folder))
    assert not list(adapted_layers(examiner._twin))
    row = json.loads((folder / GOLDEN).read_text())
    change_recorded(folder, logprobs=[row["logprobs"][0] + 0.01, *row["logprobs"][1:]])
    with pytest.raises(FileError, match=r"largest_difference +0.01 nats; 0.002 are allowed"):
        examiner.examine(examiner.read(folder))
    assert not list(adapted_layers(examiner._twin))


def test_answers_of_another_quantisation_are_not_replayed(base, small_base, tmp_path):
    """They differ by more than the bound; the notice says so."""
    folder = save(base, small_base, tmp_path / "adapter")
    record(base, small_base, folder)
    change_recorded(folder, logprobs=[-9.0] * 4)
    own = fingerprint(base.model, tokenizer=base.tokenizer)
    here = replace(own, quantisation="nf4", double_quantisation=True)
    packed = Examiner(base, here, load_base(str(small_base)).model)
    notices = packed.examine(packed.read(folder)).notices
    assert "golden.jsonl is not replayed" in notices[-1]


def test_recorded_answers_of_a_condition(examiner, base, small_base, tmp_path):
    model = load_base(str(small_base)).model
    method = Hyperlora(r=2, latent=4, hidden=2, penalty=0, conditions=("x", "y"))
    folder = lorica.save(
        move(lorica.adapt(model, method), size=0.5), tmp_path / "hyper", tokenizer=base.tokenizer
    )
    ids = [1, 300, 310, 320]
    with torch.no_grad(), with_conditions(model, ["y"]):
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    logprobs = logits.gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
    row = {"ids": ids, "logprobs": logprobs, "condition": "y"}
    (folder / GOLDEN).write_text(json.dumps(row))
    examiner.examine(examiner.read(folder))
    change_recorded(folder, condition="x")
    with pytest.raises(FileError, match="does not give what"):
        examiner.examine(examiner.read(folder))
    change_recorded(folder, condition="z")
    with pytest.raises(ConfigError, match="does not know the condition 'z'"):
        examiner.examine(examiner.read(folder))


def test_another_adapter_than_the_recorded_one_is_refused(examiner, base, small_base, tmp_path):
    """As when a scale is ignored, or the adapter is not applied."""
    right, wrong = (save(base, small_base, tmp_path / name) for name in ("right", "wrong"))
    record(base, small_base, right)
    model = load_base(str(small_base)).model
    lorica.adapt(model, lorica.Lora(r=2, alpha=2))  # half the scale
    lorica.save(move(model), wrong, tokenizer=base.tokenizer)
    (wrong / GOLDEN).write_bytes((right / GOLDEN).read_bytes())
    examiner.examine(examiner.read(right))
    with pytest.raises(FileError, match=r"does not give what golden.jsonl recorded"):
        examiner.examine(examiner.read(wrong))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        '{"ids": [1], "logprobs": []}',
        '{"ids": [1, 2], "logprobs": [-1, -1]}',
        '{"ids": [1, 2], "logprobs": [NaN]}',
        '{"ids": [1, 2], "logprobs": ["x"]}',
        '{"ids": [1, -2], "logprobs": [-1]}',
        '{"ids": [1, true], "logprobs": [-1]}',
        '{"ids": [1, 2], "logprobs": [-1], "more": 1}',
        '{"ids": [1, 2], "logprobs": [-1], "condition": 3}',
        '{"ids": [1, 2], "logprobs": [-1',
        "\xff",
    ],
)
def test_recorded_rows_are_of_one_form(tmp_path, line):
    (tmp_path / GOLDEN).write_bytes(line.encode("latin-1"))
    with pytest.raises(FileError, match=r"golden\.jsonl"):
        read_golden(tmp_path)


def test_a_folder_without_recorded_answers_has_none(tmp_path):
    assert read_golden(tmp_path) is None


def test_a_token_that_the_base_does_not_have(examiner, base, small_base, tmp_path):
    folder = save(base, small_base, tmp_path / "adapter")
    (folder / GOLDEN).write_text('{"ids": [1, 5000], "logprobs": [-1.0]}')
    with pytest.raises(FileError, match="has token 5000, and the base has 360"):
        examiner.examine(examiner.read(folder))


def test_the_training_template_comes_with_the_adapter(examiner, base, small_base, tmp_path):
    form = PromptFormat(kind="chat", template=TEMPLATE, eos="</s>")
    folder = save(base, small_base, tmp_path / "adapter", prompt_format=form)
    assert examiner.examine(examiner.read(folder)).prompt_format == form


def test_a_template_that_stands_by_itself_is_the_adapters(examiner, base, small_base, tmp_path):
    """As PEFT and TRL leave it; with the base's own tokenizer beside it, too."""
    folder = save(base, small_base, tmp_path / "adapter")
    assert examiner.examine(examiner.read(folder)).prompt_format is None
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    form = examiner.examine(examiner.read(folder)).prompt_format
    assert form is not None
    assert (form.kind, form.template) == ("chat", TEMPLATE)
    base.tokenizer.save_pretrained(folder)
    assert examiner.examine(examiner.read(folder)).prompt_format == form


def test_another_tokenizer_is_refused_with_the_way_out(examiner, base, small_base, tmp_path):
    folder = save(base, small_base, tmp_path / "adapter")
    own = load_base(str(small_base)).tokenizer
    own.add_tokens(["<new>"])
    own.save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=r"new_tokens +'<new>'\n +fix +serve it by itself: lorica"
    ):
        examiner.examine(examiner.read(folder))
