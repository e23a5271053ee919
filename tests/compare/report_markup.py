"""The elements of a report, as a strict reader of HTML sees them."""

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Markup(HTMLParser):
    """elements: (name, attributes) of each start tag. open: tags that were not closed.
    texts: of each table row, the text of its cells. inside: text in scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[list[str]] = []
        self.inside: dict[str, str] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.texts.append([])
        if tag in ("td", "th"):
            self.texts[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        opened = self.open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.inside[self.open[-1]] = self.inside.get(self.open[-1], "") + data
        elif "td" in self.open or "th" in self.open:
            self.texts[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of the elements with this name."""
        return [attributes for name, attributes in self.elements if name == tag]
