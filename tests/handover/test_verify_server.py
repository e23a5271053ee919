"""Ten planted faults are caught through a real server, and twenty right adapters raise no alarm."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file

from lorica.errors import LoricaError
from lorica.formats.golden import read_golden
from lorica.handover.export import hand_over
from lorica.handover.replay import Verdict
from lorica.handover.verify import verify
from tests.handover.adapters import saved
from tests.handover.faults import FAULTS, WEIGHTS
from tests.serve.real_server import RealServer, serving

pytestmark = pytest.mark.slow

CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant] "
RIGHT = {
    **{f"lora{seed}": ("lora", {"r": 2 + seed}) for seed in range(7)},
    **{f"rslora{seed}": ("lora", {"r": 4, "use_rslora": True, "alpha": 6}) for seed in range(3)},
    **{f"mixed{seed}": ("lora", {"r": 4, "rank_pattern": {"q_proj": 8}}) for seed in range(2)},
    **{f"adalora{seed}": ("adalora", {"r": 6}) for seed in range(2)},
    **{f"pissa{seed}": ("lora", {"r": 4, "init": "pissa"}) for seed in range(2)},
    "olora": ("lora", {"r": 4, "init": "olora"}),
    "double": ("double_lora", {"r": 4}),
    "dynamic": ("dora_dynamic", {"r": 4}),
    "alora": ("alora", {}),
    "vera": ("vera", {}),
    "narrow": ("lora", {"r": 4, "target_modules": ["v_proj"]}),
}


@pytest.fixture(scope="module")
def base(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a chat template, and a second stop that its answers reach."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    shutil.copytree(small_base, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    set_stops(folder, [2, *usual_tokens(folder)])
    return folder


def usual_tokens(base: Path) -> list[int]:
    """Tokens that this base writes often: as stops, they end its answers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = tokenizer("[user] Once upon a time [assistant] ", return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=40, do_sample=False)[0].tolist()[-30:]
    return sorted(set(written), key=written.count)[-4:]


def set_stops(base: Path, stops: list[int]) -> None:
    path = base / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": stops}))


@pytest.fixture(scope="module")
def exports(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every right adapter, exported; each folder has the name of its adapter."""
    root = tmp_path_factory.mktemp("exports")
    for seed, (name, (method, settings)) in enumerate(RIGHT.items()):
        adapter = saved(root / "runs" / name, base, method, seed, **settings)
        hand_over(adapter, root / "out" / name, to="vllm")
    return root / "out"


def plain(source: Path, folder: Path) -> Path:
    """The files that any server reads: neither recorded answers nor our manifest."""
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", WEIGHTS):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def server(
    base: Path, exports: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealServer]:
    """Of all right adapters, of spoilt ones, and of two whose names are swapped."""
    shelf = tmp_path_factory.mktemp("served")
    for folder in exports.iterdir():
        plain(folder, shelf / folder.name)
    for number, spoil in enumerate(FAULTS.values()):
        spoil(plain(exports / "rslora0", shelf / f"fault{number}"))
    for one, other in (("lora0", "lora1"), ("lora1", "lora0")):
        shutil.rmtree(shelf / one)
        plain(exports / other, shelf / one)
    with serving(base, shelf, shelf.with_name("log")) as running:
        yield running


def verdict_of(folder: Path, server: RealServer, model: str | None = None) -> Verdict:
    (verdict,) = verify(folder, endpoint=server.url, model=model)
    return verdict


@pytest.mark.parametrize("name", [name for name in RIGHT if name not in ("lora0", "lora1")])
def test_a_right_one_raises_no_alarm(name: str, exports: Path, server: RealServer):
    verdict = verdict_of(exports / name, server)
    assert verdict.problems == [] and verdict.base_worst is not None
    assert verdict.worst < 1e-3


@pytest.mark.parametrize("name", FAULTS)
def test_a_spoilt_one_is_wrong(name: str, exports: Path, server: RealServer):
    number = list(FAULTS).index(name)
    assert verdict_of(exports / "rslora0", server, f"fault{number}").problems


def test_the_base_in_place_of_the_adapter(exports: Path, server: RealServer):
    (problem,) = verdict_of(exports / "rslora0", server, server.base_name).problems
    assert problem.startswith("the adapter does not act")


def test_two_names_that_are_swapped(exports: Path, server: RealServer, tmp_path: Path):
    for name in ("lora0", "lora1"):
        shutil.copytree(exports / name, tmp_path / name)
    verdicts = {verdict.name: verdict for verdict in verify(tmp_path, endpoint=server.url)}
    assert verdicts["lora0"].problems[0].startswith("the answers are those of lora1")
    assert verdicts["lora1"].problems[0].startswith("the answers are those of lora0")


def test_a_file_cut_short_is_served_by_nobody(exports: Path, server: RealServer, tmp_path: Path):
    folder = tmp_path / "cut"
    shutil.copytree(exports / "lora2", folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(LoricaError, match="serves no model 'cut'"):
        verify(folder, endpoint=server.url, model="cut")
    with pytest.raises(LoricaError, match=WEIGHTS):
        verify(folder)


def test_another_base_of_the_same_shapes(exports: Path, base: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors = {k: t.flip(0).contiguous() for k, t in tensors.items()}
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    plain(exports / "lora2", tmp_path / "shelf/lora2")
    with serving(other, tmp_path / "shelf", tmp_path / "log") as running:
        problems = verdict_of(exports / "lora2", running).problems
    assert problems[0].startswith("the base differs by up to")


def test_another_template_and_a_missing_stop(exports: Path, base: Path, tmp_path: Path):
    other = tmp_path / "base"
    shutil.copytree(base, other)
    (other / "chat_template.jinja").write_text(CHAT.replace("[assistant]", "Lily said:"))
    set_stops(other, [2])
    golden = read_golden(exports / "lora2")
    assert golden is not None and any(row.ended == "stop" for row in golden.rows)
    plain(exports / "lora2", tmp_path / "shelf/lora2")
    with serving(other, tmp_path / "shelf", tmp_path / "log") as running:
        template, stop = verdict_of(exports / "lora2", running).problems
    assert template.startswith("the chat template is not that of the training")
    assert "did not end at the stop token of the training" in stop
