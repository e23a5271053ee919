"""Copy the files that a merged model needs beside its weights: tokenizer, template, processor.

They are copied byte for byte: transformers would not write all of them again (a processor, further
templates, the tokenizer's own model file).
"""

from fnmatch import fnmatch
from pathlib import Path

from lorica import plain_files
from lorica.base.describe import locate
from lorica.formats.vocabulary import TOKENIZERS

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
PATTERNS = (
    *TOKENIZER,
    "chat_template.*",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
TEMPLATES = "additional_chat_templates"
"""The folder in which transformers keeps templates by name."""
MAX_BYTES = 2**30


def copy_auxiliary_files(base: str, adapter: Path, folder: Path) -> list[str]:
    """Copy the side files of the base, and over them those of the adapter, into `folder`.

    Files that `folder` has already stay. base: a local folder, a hub id or "bundled".
    Returns: the names of the copied files, sorted.
    """
    own, brought = _files(_local(base), follow=True), _files(adapter, follow=False)
    if brought.keys() & set(TOKENIZERS):  # its tokenizer replaces the base's whole
        own = {name: p for name, p in own.items() if not _matches(name, TOKENIZER)}
    copied = {
        name: path for name, path in {**own, **brought}.items() if not (folder / name).exists()
    }
    for name, path in copied.items():
        (folder / name).parent.mkdir(exist_ok=True)
        data = plain_files.read_bytes(path, MAX_BYTES, follow=name in own)
        plain_files.create(folder / name, data)
    return sorted(copied)


def _files(folder: Path, *, follow: bool) -> dict[str, Path]:
    """Side files by their name in `folder`. follow: links are files, as in the hub's cache."""
    files = {
        path.name: path
        for path in folder.iterdir()
        if _matches(path.name, PATTERNS)
        and (path.is_file() if follow else plain_files.is_file(path))
    }
    inside = folder / TEMPLATES
    if inside.is_dir() and (follow or plain_files.is_folder(inside)):
        files |= {f"{TEMPLATES}/{path.name}": path for path in inside.glob("*.jinja")}
    return files


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _local(base: str) -> Path:
    """The folder of a base; of a hub id its newest copy in the cache, with its side files."""
    folder = Path(locate(base))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    patterns = [*PATTERNS, f"{TEMPLATES}/*"]
    return Path(snapshot_download(base, allow_patterns=patterns))
