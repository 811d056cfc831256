"""Documents: Markdown and HTML of the same blocks."""

import html.parser

from tf_unravel.reproduction.report.document import Code, Grid, Heading, Image, Text, markdown, page, plain

BLOCKS = [Heading("A & B", 1), Text("x < y"), Text("small", small=True), Code("tf-unravel a --b"),
          Grid(["", "paper|here"], [["row", "1 ± 2"]]), Image("figures/a.png", b"png", 'says "so"')]


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_else():
    tags = Tags()
    tags.feed(page(BLOCKS))
    assert not tags.open and "script" not in tags.seen and "link" not in tags.seen
    assert tags.links == ["data:image/png;base64,cG5n"]


def test_text_is_escaped():
    text = page(BLOCKS)
    assert "x &lt; y" in text and "<title>A &amp; B</title>" in text and 'alt="says &quot;so&quot;"' in text


def test_markdown_of_every_block():
    assert markdown(BLOCKS) == (
        "# A & B\n\nx < y\n\n*small*\n\n```\ntf-unravel a --b\n```\n\n"
        "|  | paper\\|here |\n| --- | --- |\n| row | 1 ± 2 |\n\n![says \"so\"](figures/a.png)\n"
    )


def test_a_terminal_table_is_aligned():
    assert plain(Grid(["a", "long"], [["xyz", "1"]])) == "a    long\n---------\nxyz  1"
