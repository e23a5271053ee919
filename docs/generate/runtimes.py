"""The page on the rules of each runtime, from the table that `lorica export --to` decides by.

python -m docs.generate.runtimes > docs/handover/rules.md
"""

from docs.generate.markdown import page as markdown_page
from lorica.handover.runtimes import Runtime, runtimes

OPENING = """\
Written by `python -m docs.generate.runtimes`; do not edit by hand.

What each runtime reads of a LoRA, with the release that it was read off and where. `lorica export
--to` decides by this table (`src/lorica/handover/runtimes.toml`): an adapter that changes anything
else is merged. A rule that has changed since is a line of that file."""
KINDS = {
    "linear": "linear layers",
    "embedding": "embeddings",
    "bias": "biases",
    "whole": "layers and tokens trained whole",
}


def page() -> str:
    parts = [OPENING, "| runtime | looked up | reads | largest rank |\n|---|---|---|---|"]
    parts[-1] += "".join(f"\n{_row(runtime)}" for runtime in runtimes().values())
    for runtime in runtimes().values():
        parts.append(f"## {runtime.title}")
        lines = [f"- {note}" for note in runtime.notes]
        if runtime.head_sizes:
            sizes = ", ".join(map(str, runtime.head_sizes))
            lines.append(f"- sizes of attention heads: {sizes}")
        lines += [f"- source: <{source}>" for source in runtime.sources]
        parts.append("\n".join(lines))
    return markdown_page("Rules of the runtimes", "\n\n".join(parts))


def _row(runtime: Runtime) -> str:
    reads = ", ".join(KINDS[kind] for kind in runtime.reads)
    ranks = ", ".join(map(str, runtime.ranks)) or "any"
    return f"| {runtime.label} | {runtime.checked} | {reads} | {ranks} |"


if __name__ == "__main__":
    print(page(), end="")
