"""An export is right, or what is wrong with it is named: as others read its files."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file

from lorica import cli
from lorica.errors import ConfigError, FileError
from lorica.formats.golden import read_golden, write_golden
from lorica.handover.export import hand_over
from lorica.handover.verify import verify
from tests.handover.adapters import saved
from tests.handover.faults import FAULTS, WEIGHTS, in_config, in_tensors


@pytest.fixture(scope="module")
def export(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    adapter = saved(root / "run", small_base, r=4, use_rslora=True)
    hand_over(adapter, root / "out", to="peft")
    return root / "out"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_in_peft(name: str, export: Path, tmp_path: Path):
    folder = tmp_path / "out"
    shutil.copytree(export, folder)
    (folder / "manifest.json").unlink()  # its digests would say so at once
    FAULTS[name](folder)
    (verdict,) = verify(folder)
    (problem,) = verdict.problems
    assert problem.startswith("the adapter acts otherwise than in training")


def test_an_adapter_that_does_nothing_is_named(export: Path, tmp_path: Path):
    folder = tmp_path / "out"
    shutil.copytree(export, folder)
    (folder / "manifest.json").unlink()
    in_tensors(lambda key, tensor: tensor * 0 if "lora_B" in key else tensor)(folder)
    (problem,) = verify(folder)[0].problems
    assert problem.startswith("the adapter does not act: the answers are those of the base")


def test_the_right_one_is_right(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (verdict,) = verify(export)
    assert verdict.problems == [] and verdict.worst < 1e-4 < verdict.effect
    assert verdict.base_worst is not None and verdict.base_worst < 1e-4 and verdict.places > 20
    assert cli.run(["verify", str(export)]) == 0
    assert "right" in capsys.readouterr().out


def test_a_damaged_file_is_named(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "out"
    shutil.copytree(export, folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-40])
    with pytest.raises(FileError, match=WEIGHTS):
        verify(folder)
    assert cli.run(["verify", str(folder)]) not in (0, 1)
    assert WEIGHTS in capsys.readouterr().err


def test_another_base_is_named(export: Path, small_base: Path, tmp_path: Path):
    other = tmp_path / "base"
    shutil.copytree(small_base, other)
    in_tensors_of(other / "model.safetensors")
    (verdict,) = verify(export, base=str(other))
    assert verdict.problems[0].startswith("the base differs by up to")


def in_tensors_of(path: Path) -> None:
    tensors = load_file(path)
    save_file({k: t.flip(0).contiguous() for k, t in tensors.items()}, path, {"format": "pt"})


def test_a_merged_model_is_verified(small_base: Path, tmp_path: Path):
    adapter = saved(tmp_path / "run", small_base, "dora", r=4)
    hand_over(adapter, tmp_path / "out", to="vllm")
    (verdict,) = verify(tmp_path / "out")
    assert verdict.problems == [] and verdict.base_worst is None
    tensors = load_file(tmp_path / "out/model.safetensors")
    base = load_file(small_base / "model.safetensors")
    save_file({k: base[k] for k in tensors}, tmp_path / "out/model.safetensors", {"format": "pt"})
    (verdict,) = verify(tmp_path / "out")
    assert "the adapter does not act" in verdict.problems[0]


CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant] "


def test_another_template_is_named(small_base: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    (base / "chat_template.jinja").write_text(CHAT)
    adapter = saved(tmp_path / "run", base, r=4)
    hand_over(adapter, tmp_path / "out", to="peft")
    assert (tmp_path / "out/chat_template.jinja").read_text() == CHAT
    assert verify(tmp_path / "out")[0].problems == []
    (tmp_path / "out/chat_template.jinja").write_text(CHAT.replace("[assistant]", "Lily:"))
    (problem,) = verify(tmp_path / "out")[0].problems
    assert problem.startswith("the chat template is not that of the training")


def test_a_stop_that_is_missing_is_named(small_base: Path, tmp_path: Path):
    """A merged model that stops at a token of the training, and goes on once that is lost."""
    adapter = saved(tmp_path / "run", small_base, "dora", r=4)
    hand_over(adapter, tmp_path / "out", to="vllm")
    golden = read_golden(tmp_path / "out")
    assert golden is not None and golden.header is not None
    rows = []
    for row in golden.rows:  # as if the fourth token of each answer were a stop
        assert row.prompt is not None and row.base_logprobs is not None
        tokens = transformers.AutoTokenizer.from_pretrained(small_base)
        text = tokens.decode(row.answer[:3], clean_up_tokenization_spaces=False)
        end = row.prompt + 4
        rows.append(
            replace(
                row,
                ids=row.ids[:end],
                logprobs=row.logprobs[: end - 1],
                base_logprobs=row.base_logprobs[:4],
                ended="stop",
                text=text,
            )
        )
    write_golden(tmp_path / "out", replace(golden, rows=tuple(rows)))
    (problem,) = verify(tmp_path / "out")[0].problems
    assert "did not end at the stop token of the training" in problem


def test_what_cannot_be_verified(export: Path, small_base: Path, tmp_path: Path):
    with pytest.raises(FileError, match=r"has no golden\.jsonl"):
        verify(small_base)
    shutil.copytree(export, tmp_path / "all/run")
    shutil.copytree(export, tmp_path / "all/two")
    golden = read_golden(tmp_path / "all/two")
    assert golden is not None and golden.header is not None
    write_golden(tmp_path / "all/two", replace(golden, header=replace(golden.header, name="two")))
    with pytest.raises(ConfigError, match="holds 2 exports"):
        verify(tmp_path / "all", endpoint="http://127.0.0.1:1", model="one")
    (tmp_path / "all/two").rename(tmp_path / "all/three")
    with pytest.raises(FileError, match="three holds the export two"):
        verify(tmp_path / "all")


def test_a_folder_in_which_one_export_has_no_answers(export: Path, tmp_path: Path):
    for name in ("one", "two"):
        shutil.copytree(export, tmp_path / "all" / name)
    with pytest.raises(FileError, match="are both of an export run"):
        verify(tmp_path / "all")
    (tmp_path / "all/two/golden.jsonl").unlink()
    with pytest.raises(FileError, match=r"all/two has no golden\.jsonl"):
        verify(tmp_path / "all")


def test_options_and_rows_that_would_be_passed_over(export: Path, tmp_path: Path):
    for options in ({"model": "x"}, {"base_model": "x"}, {"endpoint": "http://h", "base": "x"}):
        with pytest.raises(ConfigError, match="--"):
            verify(export, **options)
    (tmp_path / "golden.jsonl").write_text('{"ids": [1, 2], "logprobs": [-1.0]}\n')
    with pytest.raises(FileError, match="none can be replayed"):
        verify(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        verify(tmp_path / "nothing")


def test_a_base_that_was_trained_on_is_named(export: Path, small_base: Path, tmp_path: Path):
    """Without an endpoint both compute in float32, and no difference is one of fewer bits."""
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    tensors = load_file(base / "model.safetensors")
    moved = {key: tensor * 1.01 for key, tensor in tensors.items()}
    save_file(moved, base / "model.safetensors", {"format": "pt"})
    (verdict,) = verify(export, base=str(base))
    assert verdict.base_worst is not None and verdict.base_worst < 0.5
    assert verdict.problems[0].endswith("it is another one")


def test_files_that_others_cannot_read_are_named(export: Path, tmp_path: Path):
    """Whatever transformers and PEFT raise is an error about files."""
    folder = tmp_path / "out"
    shutil.copytree(export, folder)
    golden = read_golden(folder)
    assert golden is not None
    user = ({"role": "user", "content": "x"},)
    chat = replace(golden.rows[0], messages=user, prompt_text=None)
    write_golden(folder, replace(golden, rows=(chat,)))
    (folder / "chat_template.jinja").write_text("{% for")
    with pytest.raises(FileError, match="conversations with the chat template"):
        verify(folder)
    beyond = replace(golden.rows[0], ids=(999, *golden.rows[0].ids[1:]))
    write_golden(folder, replace(golden, rows=(beyond,)))
    with pytest.raises(FileError, match="token id 999"):
        verify(folder)
    (folder / "manifest.json").unlink()
    in_config(r=8)(folder)
    with pytest.raises(FileError, match="PEFT cannot load"):
        verify(folder)


def test_files_that_are_merged_are_compared_in_float32(small_base: Path, tmp_path: Path):
    """No base is beside them, but its arithmetic is known: a weak adapter's loss is seen."""
    adapter = saved(tmp_path / "run", small_base, "dora", r=4)
    hand_over(adapter, tmp_path / "out", to="vllm")
    (verdict,) = verify(tmp_path / "out")
    assert verdict.problems == [] and verdict.allowed == 0.01
