"""The page's files, without a browser: nothing inline or from elsewhere, small, well formed."""

import re
from html.parser import HTMLParser

import pytest

from lorica.serve import page

FILES = page.read_files()
SCRIPTS = {path: file.content.decode() for path, file in FILES.items() if path.endswith(".js")}
INDEX = FILES["/"].content.decode()
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Tags(HTMLParser):
    """tags: (name, attributes) of each start tag. inline: text inside scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.inline = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.inline += data


TAGS = Tags(INDEX)


def test_html_is_well_formed():
    assert TAGS.open == []
    ids = [attributes["id"] for _, attributes in TAGS.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    for _, attributes in TAGS.tags:
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            assert attributes.get(name) in (None, *ids)


def test_every_field_has_a_label():
    labelled = {attributes.get("for") for tag, attributes in TAGS.tags if tag == "label"}
    for tag, attributes in TAGS.tags:
        if tag in ("input", "textarea", "select") and attributes.get("type") != "radio":
            assert attributes["id"] in labelled


def test_nothing_is_inline():
    assert TAGS.inline.strip() == ""
    for tag, attributes in TAGS.tags:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "javascript:" not in str(attributes)


@pytest.mark.parametrize("path", FILES)
def test_nothing_comes_from_elsewhere(path):
    text = FILES[path].content.decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"\b(https?|wss?)://|[\"'(]//|@import", text)


def test_styles_load_nothing():
    assert "url(" not in FILES["/page/style.css"].content.decode()


def test_every_file_that_is_named_is_served():
    links = [attributes.get("href") or attributes.get("src") for _, attributes in TAGS.tags]
    named = {f"/{link}" for link in links if link and not link.startswith("#")}
    for text in SCRIPTS.values():
        named |= {f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
    assert named == set(FILES) - {"/"}


@pytest.mark.parametrize("path", SCRIPTS)
def test_scripts_write_no_markup_and_run_no_text(path):
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
        r"|srcdoc|\beval\(|new Function|setTimeout\(['\"]|import\(|\.style\b|javascript:"
    )
    assert not re.search(forbidden, SCRIPTS[path])


def test_the_key_is_never_in_local_storage():
    for path, text in SCRIPTS.items():
        assert not ("localStorage" in text and "apiKey" in text), path


def test_the_page_is_small():
    assert sum(len(file.content) for file in FILES.values()) < 100_000


def test_the_policy_is_strict():
    policy = dict(
        part.split(" ", 1) for part in page.HEADERS["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy)


def test_media_types_are_those_that_nosniff_accepts():
    for path, file in FILES.items():
        kind = "text/html" if path == "/" else page.MEDIA_TYPES["." + path.rpartition(".")[2]]
        assert file.media_type.startswith(kind)
    assert not any(path.endswith(".py") for path in FILES)
