"""Nothing fails silently: every broken input ends in one clear message, and nothing is lost."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from lorica import cli
from tests.end_to_end.broken import nothing
from tests.end_to_end.broken_models import ADAPTERS, BASES
from tests.end_to_end.broken_rows import DATA
from tests.end_to_end.broken_settings import PLACES, SETTINGS
from tests.end_to_end.case import TRAIN, Case, train
from tests.marks import slow_but

CASES = [*SETTINGS, *BASES, *ADAPTERS, *DATA, *PLACES]
FURTHER = {  # of each a case that is near it takes less time
    *("a chat template that loops", "a misspelt target", "a validation file of the same rows"),
    *("overlong rows, cut", "repeated rows", "a full disk later", "a disk that turns read-only"),
    *("PEFT: a tensor is missing", "resume with a setting changed by hand"),
    *("resume of a checkpoint without a file", "resume of a checkpoint cut to nothing"),
    *("another base of the same shapes, meant", "another base of other shapes, meant"),
    *("weights with a NaN", "resume on another base", "a tensor too many", "a tensor renamed"),
    *("weights without a tensor", "a layer out of range", "a rank pattern of nothing"),
    "an alpha pattern of nothing",
}
QUICK = [case for case in CASES if case.name not in FURTHER]


@pytest.fixture(scope="module")
def original(tmp_path_factory, story_base) -> Path:
    """A base, rows, a finished run, and one that a kill ended at step 4."""
    folder = tmp_path_factory.mktemp("original")
    shutil.copytree(story_base, folder / "base", copy_function=shutil.copyfile)
    (folder / "base").chmod(0o755)
    rows = [
        {"prompt": f"Once there was a dog number {i}", "completion": f" and {i} big cats."}
        for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = train(output="run").replace("--max_steps 2", "--max_steps 6")
        assert cli.run([*words.split(), "--save_steps", "2", "--learning_rate", "5e-3"]) == 0
    stopped = shutil.copytree(folder / "run", folder / "stopped")
    shutil.rmtree(stopped / "adapter")
    shutil.rmtree(stopped / "checkpoints/step-00000006")
    for name in ("results.json", "loss.png"):
        (stopped / name).unlink()
    return folder


@pytest.fixture
def inputs(original, tmp_path, monkeypatch) -> Path:
    """A copy of it all, as the working directory."""
    folder = shutil.copytree(original, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


def digests_of(folder: Path) -> dict[str, str]:
    """Every file below the folder; a folder without files counts as one."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() and not any(path.iterdir()):
            digests[f"{name}/"] = "empty"
        elif path.is_file() and path.name != ".lock":
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digests


@pytest.mark.parametrize("case", slow_but(QUICK, CASES), ids=lambda case: case.name)
def test_broken_input(case: Case, inputs, small_base, capsys):
    with pytest.MonkeyPatch.context() as patch:
        case.prepare(patch, small_base)
        before = digests_of(inputs)
        status = cli.run(case.words.split())
    out, err = capsys.readouterr()
    said = out + err
    assert status == case.status, said
    for words in case.answers:
        assert words in said, f"{words!r} is not in:\n{said}"
    assert "Traceback" not in said and "bug in lorica" not in said
    if status:
        assert any(word in said for word in ("fix", "closest", "known")), said
    after = digests_of(inputs)
    assert {name: after.get(name) for name in before} == before, "a file was changed or lost"
    new = {name for name in after if name not in before}
    assert {name.partition("/")[0] for name in new} <= set(case.left), sorted(new)
    assert not [p for p in inputs.rglob("*") if p.name.startswith((".staging-", ".replaced-"))]


@pytest.mark.slow
def test_what_is_whole_is_not_refused(inputs, capsys):
    """Without the damage the same command lines go through: it is the damage that is refused."""
    damaged = {case.words for case in CASES if case.status and case.prepare is not nothing}
    given = {
        "other",
        "jbo.yaml",
        "wandb",
        "job.yaml",
        "some.jsonl",
        "rows.csv",
        "rows.json",
        "rows.parquet",
    }
    plain = [words for words in sorted(damaged) if not given & set(words.split())]
    assert len(plain) >= 5
    for words in plain:
        shutil.rmtree("out", ignore_errors=True)
        assert cli.run(words.split()) == 0, f"{words}\n{capsys.readouterr().err}"


def test_the_fix_in_the_message_works(inputs, capsys):
    """After a mistake is corrected, the same command line goes through."""
    assert cli.run([*TRAIN.split(), "--target_modules", "q_pro"]) == 2
    assert cli.run([*TRAIN.split(), "--target_modules", "q_proj"]) == 0, capsys.readouterr().err


def test_there_are_enough():
    assert len(CASES) == len({case.name for case in CASES}) >= 35
