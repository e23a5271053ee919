"""An export is in normal form, or merged, and answers as the adapter that it is of."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

import lorica
from docs.generate.runtimes import page
from lorica import cli
from lorica.base.load import load as load_base
from lorica.errors import ConfigError, FileError, MergeError, MissingError
from lorica.formats.golden import read_golden
from lorica.handover.export import hand_over
from lorica.handover.runtimes import runtimes
from lorica.handover.verify import verify
from tests.base.architectures import write
from tests.handover.adapters import logits, logits_of, saved
from tests.laws.bases import move

LORAS = {
    "scale": ("lora", {"r": 4, "alpha": 5}),
    "rslora": ("lora", {"r": 4, "use_rslora": True}),
    "patterns": ("lora", {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "pissa": ("lora", {"r": 4, "init": "pissa"}),
    "adalora": ("adalora", {"r": 4}),
    "double": ("double_lora", {"r": 4}),
    "dynamic dora": ("dora_dynamic", {"r": 4}),
    "alora": ("alora", {}),
    "vera": ("vera", {}),
}
MERGED = {
    "dora": {"r": 4},
    "mora": {"r": 4},
    "ia3": {},
    "full": {"target_modules": ["v_proj"]},
}


QUICK = ("patterns", "adalora", "dora")
"""Cases that stand for the others; all are in the slow suite."""


def cases(names: Iterable[str]) -> list:
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("case", cases(LORAS))
def test_the_normal_form(case: str, small_base: Path, tmp_path: Path):
    name, settings = LORAS[case]
    adapter = saved(tmp_path / "run", small_base, name, **settings)
    report = hand_over(adapter, tmp_path / "out", to="vllm")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["lora_alpha"] == config["r"]
    assert not any(config.get(k) for k in ("rank_pattern", "alpha_pattern", "use_rslora"))
    assert not any(config.get(k) for k in ("use_dora", "modules_to_save", "lora_bias"))
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    ranks = {min(tensor.shape) for key, tensor in tensors.items() if "lora_A" in key}
    assert all(tensors[key].shape[0] == config["r"] for key in tensors if "lora_A" in key), ranks
    torch.testing.assert_close(logits(tmp_path / "out"), logits(adapter), atol=1e-4, rtol=1e-4)
    assert report.exported[0].rank == config["r"] and report.exported[0].name == "run"


@pytest.mark.parametrize("name", cases(MERGED))
def test_what_is_no_lora_is_merged(name: str, small_base: Path, tmp_path: Path):
    adapter = saved(tmp_path / "run", small_base, name, **MERGED[name])
    report = hand_over(adapter, tmp_path / "out", to="sglang")
    assert report.exported[0].form == "merged"
    assert any("full rank" in notice for notice in report.notices)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(model), logits(adapter), atol=1e-4, rtol=1e-4)
    assert (tmp_path / "out/tokenizer.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ["norm"]}, "trained whole"),
        pytest.param({"trainable_token_indices": [5]}, "trained whole", marks=pytest.mark.slow),
        pytest.param(
            {"target_modules": ["embed_tokens", "v_proj"]}, "embeddings", marks=pytest.mark.slow
        ),
    ],
)
def test_what_the_runtime_does_not_read_is_merged(
    settings: dict, words: str, small_base: Path, tmp_path: Path
):
    adapter = saved(tmp_path / "run", small_base, r=4, **settings)
    report = hand_over(adapter, tmp_path / "vllm", to="vllm")
    assert report.exported[0].form == "merged"
    assert any(words in notice and "vLLM" in notice for notice in report.notices)
    kept = hand_over(adapter, tmp_path / "peft", to="peft")
    assert kept.exported[0].form == "lora"
    torch.testing.assert_close(logits(tmp_path / "peft"), logits(adapter), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_experts_are_merged(tmp_path: Path):
    base = write(tmp_path / "base", "qwen3_moe")
    model = load_base(str(base)).model
    lorica.adapt(model, lorica.Lora(r=2), target_parameters="experts")
    lorica.save(move(model, 1, 0.2), tmp_path / "run", base_path=str(base))
    report = hand_over(tmp_path / "run", tmp_path / "out", to="vllm")
    assert report.exported[0].form == "merged"
    assert any("fused weights of experts" in notice for notice in report.notices)
    assert verify(tmp_path / "out")[0].problems == []


def test_biases_have_no_place_in_a_llama(small_base: Path, tmp_path: Path):
    """Neither in a LoRA that vLLM reads, nor in the merged model."""
    adapter = saved(tmp_path / "run", small_base, r=4, lora_bias=True, target_modules=["v_proj"])
    with pytest.raises(MergeError, match=r"merging loses .* is not kept"):
        hand_over(adapter, tmp_path / "out", to="vllm")
    hand_over(adapter, tmp_path / "peft", to="peft")
    torch.testing.assert_close(logits(tmp_path / "peft"), logits(adapter), atol=1e-5, rtol=1e-5)


def test_a_truncated_dora_records_what_was_written(small_base: Path, tmp_path: Path):
    adapter = saved(tmp_path / "run", small_base, "dora", r=4)
    report = hand_over(adapter, tmp_path / "out", to="vllm", rank=2)
    assert report.exported[0].rank == 2 and report.exported[0].lost > 0.01
    (verdict,) = verify(tmp_path / "out")
    assert verdict.problems == [] and verdict.worst < 1e-4 < verdict.effect


@pytest.mark.parametrize("name", ["prefix_tuning", "bottleneck"])
def test_what_is_no_change_of_weights_is_refused(name: str, small_base: Path, tmp_path: Path):
    adapter = saved(tmp_path / "run", small_base, name)
    with pytest.raises(MergeError, match="is not a LoRA"):
        hand_over(adapter, tmp_path / "out", to="vllm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_each_condition_is_an_adapter(small_base: Path, tmp_path: Path):
    settings = {"r": 4, "condition": "pair", "conditions": ("en-de", "de-en")}
    adapter = saved(tmp_path / "run", small_base, "hyperlora", **settings)
    report = hand_over(adapter, tmp_path / "out", to="vllm")
    assert [one.name for one in report.exported] == ["en-de", "de-en"]
    start = (tmp_path / "out/start.sh").read_text()
    assert 'en-de="$here"/en-de' in start and 'de-en="$here"/de-en' in start
    first, second = (logits(tmp_path / "out" / one.place) for one in report.exported)
    assert (first - second).abs().max() > 1e-3
    alone = hand_over(adapter, tmp_path / "one", to="vllm", condition="en-de")
    assert [one.place for one in alone.exported] == ["."]
    torch.testing.assert_close(logits(tmp_path / "one"), first)


def test_the_adapters_of_a_folder(small_base: Path, tmp_path: Path):
    for seed, name in enumerate(("alice", "bob")):
        saved(tmp_path / "runs" / name, small_base, seed=seed, r=4 + 4 * seed)
    (tmp_path / "runs/notes").mkdir()
    hand_over(tmp_path / "runs", tmp_path / "out", to="ray", cloud="s3://bucket/adapters")
    (application,) = yaml.safe_load((tmp_path / "out/serve.yaml").read_text())["applications"]
    (model,) = application["args"]["llm_configs"]
    assert model["lora_config"]["dynamic_lora_loading_path"] == "s3://bucket/adapters"
    assert model["engine_kwargs"] == {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    assert read_golden(tmp_path / "out/alice") and read_golden(tmp_path / "out/bob")
    saved(tmp_path / "runs" / "carol", small_base, "dora", r=4)
    with pytest.raises(MergeError, match="carol can only be served merged"):
        hand_over(tmp_path / "runs", tmp_path / "more", to="vllm")
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    "to", ["vllm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sglang", "ray"))]
)
def test_the_script_is_one_for_the_shell(to: str, small_base: Path, tmp_path: Path):
    folder = tmp_path / "a folder"
    adapter = saved(tmp_path / "run", small_base, r=4)
    cloud = {"cloud": "s3://bucket"} if to == "ray" else {}
    hand_over(adapter, folder, to=to, **cloud)
    subprocess.run(["sh", "-n", folder / "start.sh"], check=True)
    words = tmp_path / "bin"
    words.mkdir()
    for command in ("vllm", "python", "serve"):
        (words / command).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (words / command).chmod(0o755)
    path = f"{words}:/usr/bin:/bin"
    done = subprocess.run(
        [folder / "start.sh", "--port", "9"], env={"PATH": path}, capture_output=True, text=True
    )
    printed = done.stdout.splitlines()
    assert done.returncode == 0 and printed[-2:] == ["--port", "9"]
    if to == "ray":
        assert str(folder / "serve.yaml") in printed
    else:
        assert f"run={folder}" in printed and str(small_base) in printed
        rank = {"vllm": "8", "sglang": "4"}[to]
        assert printed[printed.index("--max-lora-rank") + 1] == rank


def test_settings_that_the_runtime_does_not_take(small_base: Path, tmp_path: Path):
    adapter = saved(tmp_path / "run", small_base, r=4)
    for options, words in (
        ({"to": "tgi"}, "no runtime 'tgi'"),
        ({"to": "vllm", "rank": 0}, "rank is 0"),
        ({"to": "vllm", "cloud": "s3://x"}, "where Ray reads"),
        ({"to": "ray", "cloud": "/here"}, "where Ray reads"),
        ({"to": "ray"}, "no place is named"),
        ({"to": "vllm", "quantise": "q8_0"}, "of GGUF files"),
    ):
        with pytest.raises(ConfigError, match=words):
            hand_over(adapter, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_a_rank_for_which_vllm_has_no_setting():
    vllm = runtimes()["vllm"]
    assert [vllm.setting_for(rank) for rank in (1, 2, 8, 9, 512, 513)] == [1, 8, 8, 16, 512, None]
    assert runtimes()["sglang"].setting_for(1000) == 1000


def test_the_page_of_the_rules_is_what_the_table_says():
    assert (Path(__file__).parents[2] / "docs/handover/rules.md").read_text() == page()


def test_the_rules_are_dated_and_have_sources():
    for runtime in runtimes().values():
        assert runtime.checked.year >= 2026 and runtime.version and runtime.reads
        assert all(source.startswith("https://") for source in runtime.sources)


def test_the_command(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    adapter, output = saved(tmp_path / "run", small_base, r=4), tmp_path / "out"
    assert cli.run(["export", str(adapter), "--to", "vllm", "--output", str(output)]) == 0
    assert f"verify it: lorica verify {output} --endpoint URL" in capsys.readouterr().out
    assert cli.run(["export", str(adapter), "--dtype", "float16", "--output", str(output)]) != 0
    assert "--dtype is for other runtimes" in capsys.readouterr().err


def test_the_script_does_not_run_what_a_path_says(small_base: Path, tmp_path: Path):
    """A comment ends at a line break, and what follows it is a command."""
    base = tmp_path / "base\ntouch pwned #$(touch pwned)"
    shutil.copytree(small_base, base)
    adapter = saved(tmp_path / "run", base, r=4)
    hand_over(adapter, tmp_path / "out", to="llamacpp")
    hand_over(adapter, tmp_path / "ray", to="ray", cloud="s3://x\ntouch pwned")
    environment = {"PATH": "/usr/bin:/bin", "CDPATH": str(tmp_path)}
    for name in ("out", "ray"):
        subprocess.run(
            ["sh", f"{name}/start.sh", "base.gguf"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,  # there is neither llama-server nor serve
        )
    assert not (tmp_path / "pwned").exists()


def test_weights_without_settings_are_not_passed_over(small_base: Path, tmp_path: Path):
    saved(tmp_path / "all/alice", small_base, r=4)
    broken = saved(tmp_path / "all/bob", small_base, r=4)
    for name in ("adapter_config.json", "manifest.json"):
        (broken / name).unlink()
    with pytest.raises(FileError, match="bob"):
        hand_over(tmp_path / "all", tmp_path / "out", to="peft")
    assert not (tmp_path / "out").exists()


def test_settings_of_models_are_refused_for_a_lora(small_base: Path, tmp_path: Path):
    adapter = saved(tmp_path / "run", small_base, r=4)
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("llamacpp", {"quantise": "q8_0"}),
        ("vllm", {"dtype": "float16"}),
    )
    for to, options in cases:
        with pytest.raises(ConfigError, match="run is written as a LoRA in float32"):
            hand_over(adapter, tmp_path / "out", to=to, **options)
        assert not (tmp_path / "out").exists()


def test_one_condition_that_is_merged_is_started_from_its_folder(small_base: Path, tmp_path: Path):
    settings = {"r": 4, "condition": "pair", "conditions": ("en-de",), "modules_to_save": ["norm"]}
    adapter = saved(tmp_path / "run", small_base, "hyperlora", **settings)
    report = hand_over(adapter, tmp_path / "out", to="vllm")
    assert [one.place for one in report.exported] == ["en-de"]
    assert (
        'vllm serve "$here"/en-de --served-model-name en-de'
        in (tmp_path / "out/start.sh").read_text()
    )


def test_options_of_adapters_are_refused_for_a_base(small_base: Path, tmp_path: Path):
    cases: tuple[dict[str, Any], ...] = ({"rank": 4}, {"condition": "en-de"}, {"dtype": "float16"})
    for options in cases:
        with pytest.raises(ConfigError, match="is a base without an adapter"):
            hand_over(small_base, tmp_path / "out", to="llamacpp", **options)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "context"), [(300, 2048), (2000, 1024)])
def test_a_template_that_is_longer_than_the_prompts(
    words: int, context: int, small_base: Path, tmp_path: Path
):
    """Whole prompts are recorded if the context has room for them, else their beginnings."""
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    config = json.loads((base / "config.json").read_text())
    config = json.dumps({**config, "max_position_embeddings": context})
    (base / "config.json").write_text(config)
    (base / "chat_template.jinja").write_text("dog. " * words + "{{ messages[0].content }}")
    adapter = saved(tmp_path / "run", base, r=4)
    report = hand_over(adapter, tmp_path / "out", to="peft", allow_base="same shapes")
    golden = read_golden(tmp_path / "out")
    assert golden is not None and report.exported[0].prompts == len(golden.rows)
    if words < context:
        assert all(len(row.ids) > 512 and row.messages for row in golden.rows)
    else:
        assert all(row.prompt == 512 and row.prompt_text is None for row in golden.rows)


def test_a_rank_is_not_passed_over_where_a_model_is_merged(small_base: Path, tmp_path: Path):
    adapter = saved(tmp_path / "run", small_base, r=4, modules_to_save=["norm"])
    with pytest.raises(ConfigError, match="rank is 2, and no LoRA has it: the adapter changes"):
        hand_over(adapter, tmp_path / "out", to="vllm", rank=2)
    assert not (tmp_path / "out").exists()


def test_nothing_is_claimed_of_a_training_that_is_not_known(small_base: Path, tmp_path: Path):
    """An adapter of PEFT on a base with a template: whether it was used, no file says."""
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    (base / "chat_template.jinja").write_text("[user] {{ messages[0].content }} [assistant] ")
    adapter = saved(tmp_path / "run", base, r=4)
    (adapter / "manifest.json").unlink()
    report = hand_over(adapter, tmp_path / "out", to="vllm", base=str(base))
    golden = read_golden(tmp_path / "out")
    assert golden is not None and golden.header is not None and golden.header.kind == "unknown"
    assert all(row.messages is None for row in golden.rows)
    assert not (tmp_path / "out/chat_template.jinja").exists()
    assert any("is not known" in notice for notice in report.notices)
    assert verify(tmp_path / "out")[0].problems == []


def test_vllm_is_given_the_stops_of_the_training(small_base: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<s>{% endfor %}"
    (base / "chat_template.jinja").write_text(template)
    adapter = saved(tmp_path / "run", base, r=4)
    hand_over(adapter, tmp_path / "out", to="vllm")
    golden = read_golden(tmp_path / "out")
    assert golden is not None and golden.header is not None
    assert golden.header.stop_tokens == (1, 2), "the end of a turn, and EOS"
    config = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert config["eos_token_id"] == [1, 2]
    assert '--generation-config "$here"' in (tmp_path / "out/start.sh").read_text()


def test_the_modelfile_has_a_template_only_if_the_training_had_it(small_base: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    adapter = saved(tmp_path / "run", base, r=4)  # trained on plain prompts
    (base / "chat_template.jinja").write_text("[user] {{ messages[0].content }} [assistant] ")
    hand_over(adapter, tmp_path / "out", to="llamacpp")
    assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / "out/Modelfile").read_text()


@pytest.mark.parametrize("package", ["gguf", "peft"])
def test_a_missing_package_is_named_before_anything_is_computed(
    package: str, small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    adapter = saved(tmp_path / "run", small_base, r=4)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=rf"lorica\[{package}\]"):
        if package == "gguf":
            hand_over(tmp_path / "nowhere", tmp_path / "out", to="llamacpp")
        else:
            hand_over(adapter, tmp_path / "out", to="vllm")
            verify(tmp_path / "out")
