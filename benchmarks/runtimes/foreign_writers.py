"""Adapters as mlx-lm, LitGPT and torchtune write them, with the logits that these compute.

    <interpreter of .runtimes/foreign> -m benchmarks.runtimes.foreign_writers TOOL BASES OUT

BASES holds the folders llama and qwen2, of `write_bases`. Written are OUT/<case>/adapter and
OUT/<case>/logits.safetensors, on `IDS`. The training is random numbers in the tools' own layers.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

IDS = torch.arange(3, 27).view(2, 12)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-5,
}
LAYERS = ["q_proj", "k_proj", "v_proj", "output_proj"]
LORA = {"lora_r": 4, "lora_alpha": 6, "lora_dropout": 0.0}


def write_bases(folder: Path) -> Path:
    """A random Llama and a random Qwen2 of two layers."""
    for config in (LlamaConfig(**SIZES), Qwen2Config(**SIZES)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder / config.model_type)
    return folder


def write(case: Path, logits: Tensor, tensors: dict[str, Tensor], name: str, **texts: str) -> None:
    """One case. texts: other files of the adapter, with __ for the dot of their name."""
    write_texts(case, logits, **texts)
    plain = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    save_file(plain, case / "adapter" / name)


def write_texts(case: Path, logits: Tensor, **texts: str) -> None:
    """As `write`, without the tensors."""
    (case / "adapter").mkdir(parents=True)
    save_file({"logits": logits.detach().float()}, case / "logits.safetensors")
    for key, text in texts.items():
        (case / "adapter" / key.replace("__", ".")).write_text(text)


def move(model: torch.nn.Module) -> None:
    """Random numbers for training, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "magnitude" in name:
                parameter += 0.1 * torch.randn_like(parameter)


def mlx_lm(bases: Path, out: Path) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    for kind in ("lora", "dora"):
        model, _ = load_model(bases / "llama")
        parameters = {"rank": 4, "scale": 1.5, "dropout": 0.0}
        model.freeze()
        linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
        trained = dict(tree_flatten(model.trainable_parameters()))
        moved = [(key, t + 0.1 * mx.random.normal(t.shape)) for key, t in trained.items()]
        model.load_weights(moved, strict=False)
        logits = torch.tensor(model(mx.array(IDS.tolist())).tolist())
        case = out / f"mlx-lm {kind}"
        settings = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
        write_texts(case, logits, adapter_config__json=json.dumps(settings))
        mx.save_safetensors(str(case / "adapter/adapters.safetensors"), dict(moved))


def litgpt(bases: Path, out: Path) -> None:
    import yaml
    from litgpt.lora import GPT, Config, lora_filter
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

    base = AutoModelForCausalLM.from_pretrained(bases / "llama")
    sizes: dict[str, Any] = {
        "name": "tiny-llama",
        "block_size": 128,
        "vocab_size": 64,
        "padded_vocab_size": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_query_groups": 2,
        "n_embd": 32,
        "head_size": 8,
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": 64,
        "norm_eps": 1e-5,
    }
    for name, key in {"q, k, v": True, "q, v": False}.items():
        flags = {"lora_query": True, "lora_key": key, "lora_value": True, "lora_head": True}
        training = {**LORA, **flags, "lora_projection": True, "lora_mlp": True}
        model = GPT(Config(**{**asdict(Config(**sizes)), **training})).eval()
        weights: dict[str, Tensor] = {}
        copy_weights_hf_llama(model.config, {}, weights, dict(base.state_dict()))
        model.load_state_dict(weights, strict=False)
        move(model)
        tensors = {k: t for k, t in model.state_dict().items() if lora_filter(k, t)}
        files = {"model_config__yaml": yaml.dump(asdict(Config(**sizes)))}
        files["hyperparameters__yaml"] = yaml.dump(training)
        case = out / f"litgpt {name}"
        write(case, model(IDS), tensors, "lit_model.lora.safetensors", **files)


def torchtune(bases: Path, out: Path) -> None:
    from torchtune.models import convert_weights
    from torchtune.models.llama2 import lora_llama2
    from torchtune.models.qwen2 import lora_qwen2
    from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune
    from torchtune.modules.peft import get_adapter_params

    heads = {"num_heads": 4, "num_kv_heads": 2}
    shape = {**heads, "embed_dim": 32, "vocab_size": 64, "num_layers": 2, "max_seq_len": 128}
    shape |= {"intermediate_dim": 64, "lora_rank": 4, "lora_alpha": 6, "lora_dropout": 0.0}
    cases = {
        "llama lora": (lora_llama2, {}, convert_weights.hf_to_tune),
        "llama dora": (lora_llama2, {"use_dora": True}, convert_weights.hf_to_tune),
        "qwen2 lora": (lora_qwen2, {"rope_base": 10000.0}, qwen2_hf_to_tune),
    }
    for name, (build, more, convert) in cases.items():
        base = AutoModelForCausalLM.from_pretrained(bases / name.split()[0])
        model = build(
            lora_attn_modules=LAYERS, apply_lora_to_mlp=True, norm_eps=1e-5, **shape, **more
        )
        weights = convert(dict(base.state_dict()), **heads, dim=32)
        model.eval().load_state_dict(weights, strict=False)
        for module in model.modules():
            if hasattr(module, "initialize_dora_magnitude"):
                module.initialize_dora_magnitude()
        move(model)
        logits, own = model(IDS), dict(get_adapter_params(model))
        settings = {"r": 4, "lora_alpha": 6, "peft_type": "LORA"}
        settings["target_modules"] = [*LAYERS, "w1", "w2", "w3"]
        text = json.dumps(settings)
        write(out / f"{name}, own", logits, own, "adapter_0.safetensors", adapter_config__json=text)
        peft = convert_weights.tune_to_peft_adapter_weights(own, **heads, dim=32)
        text = json.dumps(convert_weights.tune_to_peft_adapter_config(settings))
        case = out / f"{name}, exported"
        write(case, logits, peft, "adapter_model.safetensors", adapter_config__json=text)


WRITERS = {"mlx-lm": mlx_lm, "litgpt": litgpt, "torchtune": torchtune}

if __name__ == "__main__":
    torch.manual_seed(1)
    WRITERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
