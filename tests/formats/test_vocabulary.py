"""Adapters that bring a tokenizer, a chat template or embedding rows, as PEFT and TRL save them."""

import copy
import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lorica.base.bundled import FOLDER
from lorica.errors import BaseError, FileError
from lorica.formats.merge import merge_to
from lorica.formats.open_adapter import open_adapter

TEMPLATE = "{% for m in messages %}<|a|>{{ m['content'] }}<|b|>{% endfor %}"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    """A tiny Llama in float32 with the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(str(FOLDER))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=request.param,
        )
    ).save_pretrained(folder)
    return folder


def with_new_tokens(base, folder, **lora):
    """A PEFT adapter trained with two new tokens; returns its own logits of a text with them."""
    from peft import LoraConfig, get_peft_model

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>"]})
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, **lora)
        tuned = get_peft_model(copy.deepcopy(model), config)
        tuned.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)
    ids = tokenizer("kite <|a|>", return_tensors="pt").input_ids
    with torch.no_grad():
        return ids, tuned.eval()(input_ids=ids).logits


WAYS = {
    "embeddings beside": {},
    "modules to save": {"modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("way", WAYS)
def test_new_tokens_and_their_rows_come_with_the_adapter(base, tmp_path, way):
    ids, want = with_new_tokens(base, tmp_path / "a", **WAYS[way])
    opened = open_adapter(tmp_path / "a", base=str(base))
    assert opened.tokenizer("kite <|a|>", return_tensors="pt").input_ids.tolist() == ids.tolist()
    with torch.no_grad():
        got = opened.model(input_ids=ids).logits
    torch.testing.assert_close(got.cpu(), want, atol=1e-5, rtol=1e-5)
    assert opened.tokenizer.chat_template == TEMPLATE
    notices = " ".join(opened.notices)
    assert "new: <|a|>, <|b|>" in notices and "the embedding has 2,050 rows" in notices
    assert "chat template is the adapter's" in notices


def test_a_merged_model_keeps_the_tokens_of_its_adapter(base, tmp_path):
    ids, want = with_new_tokens(base, tmp_path / "a")
    merge_to(tmp_path / "a", tmp_path / "m", base=str(base))
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "m"), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, want, atol=1e-4, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "m"))
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("kite <|a|>").input_ids == ids[0].tolist()


def test_tokens_without_rows_are_refused(base, tmp_path):
    with_new_tokens(base, tmp_path / "a")
    from safetensors.torch import load_file, save_file

    weights = tmp_path / "a" / "adapter_model.safetensors"
    state = load_file(weights)
    save_file({k: t for k, t in state.items() if "lora" in k}, weights)
    with pytest.raises(FileError, match="no row for it"):
        open_adapter(tmp_path / "a", base=str(base))


def test_a_template_alone_is_taken(base, tmp_path):
    with_new_tokens(base, tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    for file in (tmp_path / "a").glob("tokenizer*"):
        file.unlink()
    opened = open_adapter(tmp_path / "a", base=str(base))
    assert opened.tokenizer.chat_template == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize("value", [10**12, 4.9, "x", True, [None], {"embed_tokens": 3}])
def test_token_ids_of_another_type_are_named(base, tmp_path, value):
    with_new_tokens(base, tmp_path / "adapter", trainable_token_indices=[3])
    path = tmp_path / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"trainable_token_indices": value}))
    with pytest.raises(FileError, match="trainable_token_indices"):
        open_adapter(str(tmp_path / "adapter"), base=str(base))


def test_a_tokenizer_that_cannot_be_read_is_named(base, tmp_path):
    with_new_tokens(base, tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE3"}}))
    with pytest.raises(BaseError, match="the tokenizer of the adapter"):
        open_adapter(tmp_path / "a", base=str(base))
