"""What is not read of another tool's folder says so, with the reason and the way out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lorica
from lorica.cli.describe import describe
from lorica.errors import FileError
from lorica.formats.adapter_file import read
from tests.formats.foreign import folders
from tests.formats.foreign.folders import write

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MLX, LITGPT = "adapters.safetensors", "lit_model.lora.safetensors"


def edit(folder: Path, **changes: object) -> None:
    """Change keys of adapter_config.json; None deletes one."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(config))


def add(folder: Path, name: str, key: str, *shape: int) -> None:
    write(folder, {name: {**load_file(folder / name), key: torch.ones(*shape)}})


def mlx_settings(folder: Path, **own: object) -> None:
    folders.mlx(folder)
    edit(folder, lora_parameters={"rank": 4, "scale": 1.5, "dropout": 0.0, **own})


def peft_with(folder: Path, **changes: object) -> None:
    folders.peft_old(folder)
    edit(folder, **changes)


def two_adapters(folder: Path) -> None:
    folders.peft_named(folder)
    add(folder, WEIGHTS, "model.layers.0.self_attn.q_proj.lora_A.other.weight", 4, 32)


def dora_without_a_word(folder: Path) -> None:
    own = folders.updates(*folders.QV, dora=True)
    files = {WEIGHTS: folders.peft_tensors(own), CONFIG: folders.OLD_CONFIG}
    write(folder, files)


def one_name_twice(folder: Path) -> None:
    folders.peft_old(folder)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    add(folder, WEIGHTS, key, 4, 32)


def tune_dora_export(folder: Path) -> None:
    own = folders.updates(*folders.QV, dora=True)
    write(folder, {WEIGHTS: folders.peft_tensors(own), CONFIG: folders.TUNE_CONFIG})


def tune_of_two_epochs(folder: Path) -> None:
    folders.torchtune(folder)
    (folder / "adapter_1.safetensors").write_bytes((folder / "adapter_0.safetensors").read_bytes())


def lit_of_phi(folder: Path) -> None:
    folders.litgpt(folder)
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("name: tiny-llama", "name: Phi-3-mini-4k-instruct"))


def lit_without_keys(folder: Path) -> None:
    folders.litgpt(folder)
    path = folder / "hyperparameters.yaml"
    path.write_text(path.read_text().replace("lora_key: true", "lora_key: false"))


def shard_missing(folder: Path) -> None:
    folders.sharded(folder)
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()


def shard_with_more(folder: Path) -> None:
    folders.sharded(folder)
    name = "adapter_model-00002-of-00002.safetensors"
    add(folder, name, "base_model.model.model.norm.weight", 32)


def shard_outside(folder: Path) -> None:
    folders.sharded(folder)
    write(folder, {f"{WEIGHTS}.index.json": {"weight_map": {"a": "../other.safetensors"}}})


def only(name: str, *keys: str) -> Callable[[Path], object]:
    tensors = {key: torch.ones(2, 2) for key in keys}
    return lambda folder: write(folder, {name: tensors})


def pickled(name: str, *others: str) -> Callable[[Path], object]:
    return lambda folder: write(folder, {name: "pickle", **{other: {} for other in others}})


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "PEFT, no alpha": (
        lambda p: peft_with(p, lora_alpha=None),
        ("has no lora_alpha", "scale of the adapter is not known", "lora_alpha 8"),
    ),
    "PEFT, no rank": (lambda p: peft_with(p, r=None), ("has no r:", "write the values")),
    "PEFT 0.2, fused q, k, v": (
        lambda p: peft_with(p, enable_lora=[True, False, True]),
        ("enable_lora [True, False, True]", "fused q, k and v"),
    ),
    "PEFT, biases": (
        lambda p: peft_with(p, bias="lora_only"),
        ("bias 'lora_only'", "biases of the base were trained"),
    ),
    "PEFT, two adapters": (two_adapters, ("several adapters: default, other", "selected_adapters")),
    "PEFT, one name twice": (one_name_twice, ("the same one under two names", "save_pretrained")),
    "PEFT, a DoRA that does not say so": (dora_without_a_word, ("use_dora", '"use_dora": true')),
    "a shard is missing": (shard_missing, ("not in the folder: adapter_model-00002",)),
    "a shard holds more": (shard_with_more, ("do not hold what", "model.norm.weight in")),
    "a shard elsewhere": (shard_outside, ("no plain file name",)),
    "mlx-lm, no scale": (
        lambda p: (folders.mlx(p), edit(p, lora_parameters={"rank": 4})),
        ("the scale is not known", "rank 8, scale 20"),
    ),
    "mlx-lm, an unknown setting": (
        lambda p: mlx_settings(p, use_rslora=True),
        ("lorica does not read: use_rslora", "mlx_lm.fuse"),
    ),
    "mlx-lm 0.14, which scale": (
        lambda p: (
            mlx_settings(p, alpha=8),
            edit(p, num_layers=None, fine_tune_type=None, lora_layers=2, use_dora=False),
        ),
        ("its scale is 3 up to mlx-lm 0.14.1, and 1.5 in later ones", "delete alpha"),
    ),
    "mlx-lm, all weights": (
        lambda p: (folders.mlx(p), edit(p, fine_tune_type="full")),
        ("fine_tune_type is 'full'", "mlx_lm.fuse"),
    ),
    "mlx-lm, experts": (
        lambda p: (
            folders.mlx(p),
            add(p, MLX, "model.layers.0.mlp.switch_mlp.up_proj.lora_a", 2, 4, 32),
            add(p, MLX, "model.layers.0.mlp.switch_mlp.up_proj.lora_b", 2, 64, 4),
        ),
        ("is of experts, (2, 4, 32)",),
    ),
    "mlx-lm, another rank": (
        lambda p: mlx_settings(p, rank=8),
        ("is (32, 4), and the rank is 8",),
    ),
    "mlx-lm, a half": (
        lambda p: (folders.mlx(p), add(p, MLX, "model.layers.1.mlp.up_proj.lora_a", 32, 4)),
        ("model.layers.1.mlp.up_proj has lora_a, not lora_a, lora_b",),
    ),
    "mlx-lm, an embedding": (
        lambda p: (
            folders.mlx(p),
            add(p, MLX, "model.embed_tokens.lora_a", 360, 4),
            add(p, MLX, "model.embed_tokens.lora_b", 4, 32),
        ),
        ("is of an embedding, where mlx-lm adapts a tied head too",),
    ),
    "mlx-lm, npz": (pickled("adapters.npz", CONFIG), ("adapters.npz is of an old mlx-lm",)),
    "LitGPT, Phi": (lit_of_phi, ("adapters of Phi-3-mini-4k-instruct", "convert_from_litgpt")),
    "LitGPT, other flags": (lit_without_keys, ("of other sizes than", "adapted  q, v")),
    "LitGPT, an unknown name": (
        lambda p: (folders.litgpt(p), add(p, LITGPT, "transformer.h.0.attn.norm_q.weight", 8)),
        ("not those of a LoRA of LitGPT", "transformer.h.0.attn.norm_q.weight"),
    ),
    "LitGPT, no YAML": (
        lambda p: (folders.litgpt(p), (p / "hyperparameters.yaml").unlink()),
        ("has no hyperparameters.yaml", "copy it"),
    ),
    "torchtune, no alpha": (
        lambda p: (folders.torchtune(p), edit(p, lora_alpha=None)),
        ("has no lora_alpha", "lora_alpha of the training's recipe"),
    ),
    "torchtune, an unknown name": (
        lambda p: (
            folders.torchtune(p),
            add(p, "adapter_0.safetensors", "layers.0.attn.q_norm.lora_a.weight", 4, 8),
        ),
        ("does not read", "layers.0.attn.q_norm.lora_a.weight"),
    ),
    "torchtune, DoRA exported": (
        tune_dora_export,
        ("magnitudes of q and k in another order of rows", "adapter_model.pt"),
    ),
    "torchtune, two epochs": (tune_of_two_epochs, ("several epochs", "adapter_config.json")),
    "diffusers": (
        only("pytorch_lora_weights.safetensors", "unet.down_blocks.0.attn1.to_q.lora.down.weight"),
        ("image model in diffusers' layout", "load_lora_weights"),
    ),
    "diffusers, a transformer in PEFT's folder": (
        lambda p: (
            only(WEIGHTS, "transformer.transformer_blocks.0.attn.to_q.lora_A.weight")(p),
            write(p, {CONFIG: folders.OLD_CONFIG}),
        ),
        ("image model in diffusers' layout",),
    ),
    "kohya": (
        only("my_style.safetensors", "lora_unet_down_blocks_0_attn1_to_q.alpha"),
        ("image model in kohya's layout", "lora_unet_down_blocks_0_attn1_to_q.alpha"),
    ),
    "PEFT's pickle": (pickled("adapter_model.bin", CONFIG), ("is a pickle", "python -c")),
    "LitGPT's pickle": (
        pickled("lit_model.pth.lora", "model_config.yaml"),
        ("is a pickle", "lit_model.lora.safetensors"),
    ),
    "torchtune's pickle": (
        pickled("adapter_3.pt", CONFIG),
        ("is a pickle", "adapter_3.safetensors"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_says_why_and_what_to_do(name, tmp_path):
    spoil, words = REFUSED[name]
    spoil(tmp_path / "adapter")
    for ask in (read, lambda path: describe(str(path))):
        with pytest.raises(FileError) as error:
            ask(tmp_path / "adapter")
        assert error.value.fix
        for word in words:
            assert word in str(error.value)


def test_a_single_file_of_kohyas_is_refused_by_name(tmp_path):
    only("style.safetensors", "lora_te_text_model_0_mlp_fc1.lora_down.weight")(tmp_path)
    with pytest.raises(FileError, match="kohya's layout"):
        read(tmp_path / "style.safetensors")


def test_checkpoints_inside_are_named_by_their_step_and_the_newest_is_the_fix(tmp_path):
    for step in (1000, 500):
        folders.checkpoint(tmp_path / f"checkpoint-{step}")
    with pytest.raises(FileError) as error:
        read(tmp_path)
    assert error.value.facts["adapters_inside"] == "checkpoint-500, checkpoint-1000"
    assert str(tmp_path / "checkpoint-1000") in str(error.value.fix)


def test_the_conversion_that_the_message_names_converts(tmp_path):
    own = folders.litgpt(tmp_path / "want")
    (tmp_path / "adapter").mkdir()
    for name in ("model_config.yaml", "hyperparameters.yaml"):
        (tmp_path / "adapter" / name).write_bytes((tmp_path / "want" / name).read_bytes())
    state = {"model": folders.lit_tensors(own, "attn.qkv")}
    torch.save(state, tmp_path / "adapter/lit_model.pth.lora")
    with pytest.raises(FileError) as error:
        read(tmp_path / "adapter")
    exec(str(error.value.fix).partition('python -c "')[2].removesuffix('"'), {})
    have, want = read(tmp_path / "adapter"), read(tmp_path / "want")
    assert have.tensors.keys() == want.tensors.keys()
    assert all(torch.equal(have.tensors[key], want.tensors[key]) for key in want.tensors)


def load(small_base: Path, folder: Path, model_type: str = "llama"):
    model = AutoModelForCausalLM.from_pretrained(small_base).eval()
    model.config.model_type = model_type
    lorica.load(model, folder)
    return model


def test_scale_of_an_mlx_lm_before_0_14_has_alpha_in_it(small_base, tmp_path):
    own = folders.updates(*folders.QV, scale=3.0)
    config = {**folders.MLX_CONFIG, "lora_layers": 2}
    config["lora_parameters"] = {"rank": 4, "alpha": 8, "dropout": 0.0, "scale": 1.5}
    del config["num_layers"], config["fine_tune_type"]
    write(tmp_path / "adapter", {MLX: folders.mlx_tensors(own), CONFIG: config})
    model = load(small_base, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(small_base).eval()
    with torch.no_grad():
        logits = model(folders.IDS).logits
    torch.testing.assert_close(logits, folders.expected(plain, own), atol=1e-4, rtol=1e-4)


def test_litgpt_0_4_with_all_of_q_k_v_is_added_as_its_rows_stand(small_base, tmp_path):
    """Its fused weight goes by query group, and the update is added to it row by row."""
    own = folders.updates(*folders.QKV)
    write(tmp_path / "adapter", folders.lit_files(own, "attn.attn"))
    model = load(small_base, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(small_base).eval()
    size = folders.SIZE
    for i, block in enumerate(plain.model.layers):
        attention = block.self_attn
        q, k, v = (getattr(attention, f"{part}_proj").weight.data for part in "qkv")
        fused = [
            row
            for g in range(2)
            for row in (*q.split(size)[2 * g : 2 * g + 2], k.split(size)[g], v.split(size)[g])
        ]
        parts = [own[f"model.layers.{i}.self_attn.{part}_proj"] for part in "qkv"]
        update = torch.cat([1.5 * p.b @ p.a for p in parts])
        for row, change in zip(fused, update.split(size), strict=True):
            row += change
    with torch.no_grad():
        want, logits = plain(folders.IDS).logits, model(folders.IDS).logits
    torch.testing.assert_close(logits, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2", "gpt_neox"])
def test_torchtunes_export_is_refused_where_its_rows_are_not_those_of_the_base(
    kind, small_base, tmp_path
):
    folders.torchtune_export(tmp_path / "adapter")
    words = {"qwen2": "must have them as they are", "gpt_neox": "is not known for a gpt_neox"}
    with pytest.raises(FileError, match=words[kind]):
        load(small_base, tmp_path / "adapter", kind)


def test_torchtunes_own_rows_of_qwen_stay(small_base, tmp_path):
    own = folders.updates(*folders.QKV[:2])
    tensors = folders.tune_tensors(own, permuted=False)
    write(tmp_path / "adapter", {WEIGHTS: tensors, CONFIG: folders.TUNE_CONFIG})
    model = load(small_base, tmp_path / "adapter", "qwen2")
    plain = AutoModelForCausalLM.from_pretrained(small_base).eval()
    with torch.no_grad():
        logits = model(folders.IDS).logits
    torch.testing.assert_close(logits, folders.expected(plain, own), atol=1e-4, rtol=1e-4)


def test_an_mlx_base_is_not_taken_for_one_that_transformers_loads(tmp_path):
    folders.mlx(tmp_path / "adapter")
    edit(tmp_path / "adapter", model="mlx-community/Llama-3.2-1B-Instruct-4bit")
    file = read(tmp_path / "adapter")
    assert file.base_path is None
    assert "converted from" in file.notices[0]
