"""Adapter folders that a server must refuse: how each is made from a good one, and what the refusal
says. The good one is a LoRA on `tests.small_base`."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import torch

import lorica
from lorica.data.prompt_format import PromptFormat
from lorica.formats.golden import GOLDEN
from tests.formats.test_broken_folder import config, cut, flip, manifest, only_a_pickle, tensors
from tests.laws.bases import move
from tests.small_base import model, tokenizer

WEIGHTS, MANIFEST, CONFIG = "adapter_model.safetensors", "manifest.json", "adapter_config.json"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
NEW = KEY.replace("q_proj", "x_proj")
Spoil = Callable[[Path], object]


def good(path: Path, seed: int = 1, **method: object) -> Path:
    """The folder of a LoRA that has moved away from its start."""
    adapted = model()
    lorica.adapt(adapted, lorica.Lora(**{"r": 2, **method}))  # type: ignore[arg-type]
    return lorica.save(move(adapted, seed), path, tokenizer=tokenizer())


def other_method(name: str, **targets: object) -> Spoil:
    def spoil(path: Path) -> None:
        adapted = model()
        kind = lorica.method(name) if name == "full" else lorica.method(name, r=2)
        lorica.adapt(adapted, kind, **targets)
        lorica.save(move(adapted), path, tokenizer=tokenizer())

    return spoil


def other_base(change: Callable[[torch.nn.Module], object]) -> Spoil:
    def spoil(path: Path) -> None:
        adapted = model()
        change(adapted)
        lorica.adapt(adapted, lorica.Lora(r=2))
        lorica.save(move(adapted), path, tokenizer=tokenizer())

    return spoil


def wider_base(path: Path) -> None:
    import transformers

    config = model().config
    config.intermediate_size = 96
    adapted = transformers.LlamaForCausalLM(config)
    lorica.adapt(adapted, lorica.Lora(r=2))
    lorica.save(move(adapted), path, tokenizer=tokenizer())


def other_tokenizer(path: Path) -> None:
    own = tokenizer()
    own.add_special_tokens({"eos_token": "<unk>"})
    adapted = model()
    lorica.adapt(adapted, lorica.Lora(r=2))
    lorica.save(move(adapted), path, tokenizer=own)


def template(form: PromptFormat) -> Spoil:
    def spoil(path: Path) -> None:
        adapted = model()
        lorica.adapt(adapted, lorica.Lora(r=2))
        lorica.save(move(adapted), path, tokenizer=tokenizer(), prompt_format=form)

    return spoil


def chat(text: str) -> Spoil:
    return template(PromptFormat(kind="chat", template=text, eos="</s>"))


def changed_template(path: Path) -> None:
    """Without its digest."""
    chat("{% for m in messages %}{{ m.content }}{% endfor %}")(path)
    manifest(lambda m: m["prompt_format"].update({"template": "{{ messages }}"}))(path)


def with_tokens(path: Path) -> None:
    own = tokenizer()
    own.add_tokens(["<new>"])
    own.save_pretrained(path)


def linked(name: str) -> Spoil:
    def spoil(path: Path) -> None:
        outside = path.parent.parent / f"outside-{name}"
        (path / name).rename(outside)
        (path / name).symlink_to(outside)

    return spoil


def linked_folder(path: Path) -> None:
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def pipe(name: str) -> Spoil:
    def spoil(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)

    return spoil


def folder_as(name: str) -> Spoil:
    def spoil(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return spoil


def write(name: str, data: bytes) -> Spoil:
    return lambda path: (path / name).write_bytes(data)


def many_tensors(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{i}": entry for i in range(60_000)}).encode()
    (path / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)


def unfinished_run(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()
    for name in ("config.yaml", "events.jsonl"):
        (path / name).write_text("")


def run_with_a_link(path: Path) -> None:
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.mkdir()
    for name in ("config.yaml", "events.jsonl"):
        (path / name).write_text("")
    (path / "adapter").symlink_to(outside)


def removed(path: Path) -> None:
    shutil.rmtree(path)


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def golden(text: str) -> Spoil:
    return lambda path: (path / GOLDEN).write_text(text)


LOGPROBS = '{"ids": [1, 300, 310], "logprobs": [-0.01, -0.01]}'
LOOP = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}"
BAD: dict[str, tuple[Spoil, str]] = {
    # the folder
    "no folder": (removed, "there is no adapter 'bad'"),
    "a file": (lambda p: (removed(p), p.write_text("")), "there is no adapter 'bad'"),
    "an empty folder": (empty, "not an adapter folder"),
    "a link to a folder": (linked_folder, "is a link"),
    "a run with a link to its adapter": (run_with_a_link, "adapter is a link"),
    "a run that has not finished": (unfinished_run, "has not finished"),
    # its files
    "linked weights": (linked(WEIGHTS), "is a link"),
    "a linked manifest": (linked(MANIFEST), "is a link"),
    "a linked config": (linked(CONFIG), "is a link"),
    "a pipe for weights": (pipe(WEIGHTS), "is a pipe"),
    "a pipe for a manifest": (pipe(MANIFEST), "is a pipe"),
    "a folder for weights": (folder_as(WEIGHTS), "not an adapter folder"),
    "no weights": (lambda p: (p / WEIGHTS).unlink(), "not an adapter folder"),
    "no config": (lambda p: (p / CONFIG).unlink(), "not what was saved"),
    "only a pickle": (only_a_pickle, "is a pickle"),
    # weights
    "cut weights": (cut(WEIGHTS, 700), "damaged"),
    "empty weights": (cut(WEIGHTS, 0), "damaged"),
    "half a header": (cut(WEIGHTS, 5), "damaged"),
    "one bit is another": (flip, "not what was saved"),
    "a huge header": (write(WEIGHTS, struct.pack("<Q", 2**50)), "a header of 1,125,899"),
    "too many tensors": (many_tensors, "more than 50,000 tensors"),
    "a tensor is missing": (tensors(lambda s: s.pop(KEY)), "missing"),
    "a tensor too many": (tensors(lambda s: s.update({NEW: torch.ones(2)})), "x_proj"),
    "another shape": (tensors(lambda s: s.update({KEY: torch.ones(2, 31)})), r"\(2, 31\)"),
    "another rank": (tensors(lambda s: s.update({KEY: torch.ones(3, 32)})), r"\(3, 32\)"),
    "a NaN": (tensors(lambda s: s[KEY].fill_(torch.nan)), "not_finite"),
    "an infinity": (tensors(lambda s: s[KEY][0].fill_(torch.inf)), "not_finite"),
    "numbers that are no floats": (
        tensors(lambda s: s.update({KEY: torch.ones(2, 32, dtype=torch.int32)})),
        "not of floats",
    ),
    # the manifest
    "a cut manifest": (cut(MANIFEST, 100), "cannot be read"),
    "an empty manifest": (cut(MANIFEST, 0), "cannot be read"),
    "a manifest that is a list": (write(MANIFEST, b"[1]"), "holds list"),
    "a manifest that is no text": (write(MANIFEST, b"\xff\xfe"), "cannot be read"),
    "a key twice": (write(MANIFEST, b'{"format": 1, "format": 1}'), "there twice"),
    "a manifest with a NaN": (write(MANIFEST, b'{"format": NaN}'), "holds NaN"),
    "deep nesting": (write(MANIFEST, b'{"a":' * 99 + b"1" + b"}" * 99), "nested deeper"),
    "a newer format": (manifest(lambda m: m.update(format=2)), "has format 2"),
    "a file above the folder": (
        manifest(lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": "0"}})),
        "no plain file name",
    ),
    "no digest of the weights": (manifest(lambda m: m["files"].pop(WEIGHTS)), "no digest of"),
    # settings
    "an unknown method": (manifest(lambda m: m["method"].update(name="lroa")), "lroa"),
    "an unknown setting": (manifest(lambda m: m["method"].update(rr=1)), "rr"),
    "another rank in the manifest": (manifest(lambda m: m["method"].update(r=4)), "contradict"),
    "another scale in the manifest": (
        manifest(lambda m: m["method"].update(alpha=3)),
        "contradict",
    ),
    "a rank beyond all memory": (manifest(lambda m: m["method"].update(r=10**12)), r"1e\+12"),
    "a target that is not there": (
        manifest(lambda m: m["targets"].update(target_modules=["x_proj"])),
        "x_proj",
    ),
    "an unknown setting of PEFT": (config(lambda c: c.update(lora_new=3)), "lora_new 3"),
    "a method that PEFT alone has": (config(lambda c: c.update(peft_type="OFT")), "OFT"),
    "a rank of PEFT that does not fit": (config(lambda c: c.update(r=5)), r"\(5"),
    # the base
    "another base": (other_base(lambda m: m.lm_head.weight.data.add_(0.5)), "not the base"),
    "a base of another shape": (wider_base, "not the base"),
    "another tokenizer in training": (other_tokenizer, "not the base"),
    "a damaged fingerprint": (manifest(lambda m: m["base"].pop("shapes")), "fingerprint"),
    # what it would change for others
    "a tokenizer with new tokens": (with_tokens, "new_tokens +'<new>'"),
    "a damaged tokenizer": (write("tokenizer.json", b"{"), "tokenizer"),
    "classes": (manifest(lambda m: m.update(labels=["yes", "no"])), "writes no text"),
    "a classifier of PEFT": (config(lambda c: c.update(task_type="SEQ_CLS")), "writes no text"),
    "another task of PEFT": (config(lambda c: c.update(task_type="TOKEN_CLS")), "writes no text"),
    "all weights": (other_method("full"), "lorica merge"),
    "whole layers": (other_method("lora", modules_to_save=["lm_head"]), "lorica merge"),
    "rows of the embedding": (other_method("lora", trainable_token_indices=[5]), "lorica merge"),
    # the template
    "a changed template": (changed_template, "does not match its digest"),
    "a template that cannot be parsed": (chat("{% for m in"), "the template that"),
    "a template that does not end": (chat(LOOP), "the template that"),
    "a template that runs code": (chat("{{ ''.__class__.__mro__ }}"), "the template that"),
    "a template of a megabyte": (chat("x" * 2**21), "more than 1,048,576 characters"),
    "several prompt templates": (
        template(PromptFormat(kind="prompt", template={"a": "{{ prompt }}", "b": "x"})),
        "several templates",
    ),
    "a prompt template with unknown fields": (
        template(PromptFormat(kind="prompt", template="{{ nobody.knows }}")),
        "the template that",
    ),
    # the recorded answers
    "answers of another adapter": (golden(LOGPROBS), "does not give what"),
    "damaged answers": (golden("{"), "cannot be read"),
    "a pipe for answers": (pipe(GOLDEN), "is a pipe"),
}
NAMES = (
    "",
    ".",
    "..",
    "../good",
    "./good",
    "good/../good",
    "/etc",
    "good/",
    "Good",
    "GOOD",
    "go\N{LATIN SMALL LETTER O WITH DIAERESIS}d",
    "g\N{CYRILLIC SMALL LETTER O}od",
    "\N{FULLWIDTH LATIN SMALL LETTER G}ood",
    "goo\N{COMBINING RING BELOW}d",
    "good ",
    " good",
    "good\n",
    "good\0",
    "-rf",
    ".hidden",
    "a" * 65,
    "good:x",
    "c:\\good",
    "~",
    "$HOME",
    "good\N{RIGHT-TO-LEFT OVERRIDE}",
)
