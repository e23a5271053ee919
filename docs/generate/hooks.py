"""MkDocs calls these: they add the pages that are generated from the source code."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.generate import commands, methods, python

ROOT = Path(__file__).parents[2]
EXTERNAL = re.compile(r'href="(https?://[^"#]+)')
external_links: set[str] = set()
"""Links that leave the site. They are listed, not visited: a build needs no network."""


def pages() -> dict[str, str]:
    """Path in docs/ -> Markdown, for every generated page."""
    return {
        "reference/commands.md": commands.commands_page(),
        "reference/settings.md": commands.settings_page(),
        "reference/exit-statuses.md": commands.exit_statuses_page(),
        "reference/python.md": python.page(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "design/contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        **methods.pages(ROOT),
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the page of each method in the navigation."""
    section = next(item["Methods"] for item in config["nav"] if "Methods" in item)
    section += [{name: methods.path(name)} for name in methods.names()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, **rest: Any) -> None:
    """Take down the external links of a page."""
    external_links.update(EXTERNAL.findall(html))


def on_post_build(config: MkDocsConfig) -> None:
    """Write the list of external links beside the pages."""
    path = Path(config.site_dir, "external-links.txt")
    path.write_text("".join(f"{link}\n" for link in sorted(external_links)), encoding="utf-8")
