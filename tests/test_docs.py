"""What the documentation shows is what the commands do.

Every code block of every page is run, in order, in one folder per page, or says why it is not; see
docs/generate/blocks.py. The fast tests check without running anything that every command, option
and setting exists.
"""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import lorica
from docs.generate import blocks, commands, hooks
from docs.generate.docstrings import as_markdown
from docs.generate.methods import split_title
from lorica.cli import COMMANDS
from lorica.cli.help import SettingsHelp, setting_entries
from lorica.cli.methods import markdown_rows, row
from lorica.recipe.catalogue import methods

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "recipes").glob("*.yaml"))]
COMMAND = re.compile(
    r"^[ #]*(?:torchrun [^\n]*? -m )?(lorica (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE
)
LANGUAGES = {"bash", "python", "yaml", "json", "text"}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands_in(path: Path) -> Iterator[list[str]]:
    """The words of every lorica command in a page's code, and in the comments of a recipe."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        indented = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
        fenced = [b.text for b in blocks.blocks_of(text) if b.language in ("bash", "text")]
        text = "\n".join([*indented, *fenced])
    for line in COMMAND.findall(text):
        words = shlex.split(line.replace("\\\n", " ").rstrip(" &"), comments=True)
        if words[1:] and (words[1] in COMMANDS or words[1].isalpha()) and words[1:2] != ["COMMAND"]:
            yield words


@cache
def options_of(command: str) -> set[str]:
    """The options that a command takes, settings included, written with underscores."""
    app = import_module(f"lorica.cli.{command}").app
    known = {"--help", "--debug"}
    for argument in app.assemble_argument_collection(parse_docstring=True):
        known |= {name.replace("-", "_").replace("__", "--", 1) for name in argument.names}
    formatter = app.help_formatter
    if isinstance(formatter, SettingsHelp):
        known |= {e.positive_names[0] for _, e in setting_entries(formatter.model)} | {"--data"}
        if formatter.method:
            known |= {f"--method.{o.name}" for m in methods().values() for o in m.options}
            known |= {"--method"}
    return known


@pytest.mark.parametrize("path", SHOWN, ids=label)
def test_every_command_and_option_exists(path):
    for words in commands_in(path):
        assert words[1] in COMMANDS, f"{' '.join(words)}: there is no command {words[1]}"
        for word in words[2:]:
            if word.startswith("--"):
                option = "--" + word[2:].partition("=")[0].replace("-", "_")
                assert option in options_of(words[1]), f"{' '.join(words)}: there is no {option}"


def test_commands_are_found_in_the_pages():
    assert sum(1 for path in SHOWN for _ in commands_in(path)) > 50


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_every_block_is_run_or_says_why_not(path):
    text = path.read_text(encoding="utf-8")
    found = blocks.blocks_of(text)
    assert len(found) * 2 == len(re.findall(r"^ *```", text, re.MULTILINE)), "a block is not read"
    for block in found:
        assert block.language in LANGUAGES
        known = not block.mark or block.reason_not_run or block.status
        assert known, f"<!-- {block.mark} --> is neither `not run: REASON` nor `exit status N`"
        assert block.text.strip(), "a text block is empty: python -m docs.generate.blocks PAGE"


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [p for p in PAGES if any(b.runs for b in blocks.blocks_of(p.read_text(encoding="utf-8")))],
    ids=label,
)
def test_every_block_of_a_page_runs_and_prints_what_the_page_shows(path, tmp_path):
    for block, printed in blocks.outputs(path.read_text(encoding="utf-8"), tmp_path):
        line = blocks.missing_line(block.text, printed)
        assert line is None, (
            f"{label(path)} shows this line, which is not printed: {line}\n{printed}"
        )


def test_numbers_and_spaces_of_a_shown_line_do_not_count():
    printed = "loss   5.67 [5.6, 5.7]\nin runs/mine, 58.6 s\n"
    assert blocks.missing_line("loss 1.2 [3.4, 5.6]\nin runs/mine, 7.0 s\n", printed) is None
    assert blocks.missing_line("in runs/mine, 1.0 s\nloss 1 [2, 3]\n", printed) == "loss 1 [2, 3]"


def test_a_shown_line_that_is_not_printed_any_more_is_replaced_by_the_one_most_like_it():
    printed = "base: starting\nstep 1/3  loss 2.0\nthe merged model lies in merged\nloss 0.4\n"
    assert blocks.updated("", printed) == "the merged model lies in merged\nloss 0.4\n"
    assert blocks.updated("loss 0.5\n", printed) == "loss 0.5\n"
    shown = "the merged model is in merged\n\nloss 0.5\n"
    assert blocks.updated(shown, printed) == "the merged model lies in merged\n\nloss 0.5\n"


def test_blocks_and_their_marks_are_read():
    page = (
        "<!-- not run: it needs a GPU -->\n```bash\na\n```\n\n"
        '```yaml title="r.yaml"\nb: 1\n```\n\n<!-- exit status 3 -->\n```bash\nexit 3\n```\n'
    )
    unrun, file, failing = blocks.blocks_of(page)
    assert unrun.reason_not_run == "it needs a GPU"
    assert (file.title, file.runs) == ("r.yaml", False)
    assert (failing.status, failing.runs) == (3, True)


def test_the_table_of_methods_is_that_of_the_source():
    page = (ROOT / "docs/methods/README.md").read_text(encoding="utf-8")
    shown = page.split("<!-- lorica methods --markdown -->\n")[1].split("<!-- end -->")[0]
    assert shown.splitlines() == list(markdown_rows(list(methods().values())))


@pytest.mark.parametrize("name", methods())
def test_every_method_says_what_the_table_needs(name):
    entry = methods()[name]
    assert all(row(entry))
    assert entry.about
    if name not in ("full", "double_lora"):  # no paper of their own
        assert "arXiv:" in str(entry.facts["paper"])
    for option in entry.options:
        assert option.note, f"{name}.{option.name} has no line of help"
        assert option.default is not None


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return hooks.pages()


def test_every_method_has_a_page(pages):
    for name, entry in methods().items():
        page = pages[f"methods/{name}.md"]
        assert f"--method {name}" in page
        for option in entry.options:
            assert f"| `method.{option.name}` |" in page


def test_every_command_and_setting_is_in_the_reference(pages):
    for name in COMMANDS:
        assert f"## lorica {name} " in pages["reference/commands.md"]
    for name in ("data.max_length", "learning_rate", "gradient_accumulation_steps"):
        assert f"{{ #{name} }}" in pages["reference/settings.md"]


def test_every_exit_status_is_in_the_reference(pages):
    page = pages["reference/exit-statuses.md"]
    for status in (0, 1, 2, 3, 4, 5, 6, 70, 130, 143):
        assert f"| `{status}` |" in page
    errors = lorica.LoricaError.__subclasses__()
    for error in errors:
        if error.__module__ == "lorica.errors":  # the server's refusals end no command
            assert f"| `{error.__name__}` |" in page


def test_every_public_name_is_in_the_reference(pages):
    for name in lorica.__all__:
        assert f"heading: lorica.{name}\n" in pages["reference/python.md"]


def test_a_docstring_becomes_markdown():
    text = "Do it; note: x.\n\nname: what it is,\n    b*c. seed: int.\n\nAs `use`. Raises: E if x."
    assert as_markdown(text, ["name", "seed"]).splitlines() == [
        "Do it; note: x.",
        "",
        "- `name`: what it is, b\\*c.",
        "- `seed`: int.",
        "",
        "As `use`.",
        "",
        "**Raises**: E if x.",
    ]


def test_the_first_sentence_of_a_method_is_taken_apart():
    assert split_title("LoRA: y = W x + s B A x.") == ("LoRA", "y = W x + s B A x", "")
    assert split_title("Full: all is trained, W <- W - x.") == (
        "Full",
        "",
        "Full: all is trained, W <- W - x.",
    )
    assert split_title("VeRA: y = v * (B (d * x)), with trained d and v.") == (
        "VeRA",
        "y = v * (B (d * x))",
        "with trained d and v.",
    )


def test_the_usage_of_a_command_names_what_it_needs():
    assert "lorica merge PATH --output OUTPUT [OPTIONS]" in commands.commands_page()
