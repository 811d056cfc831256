"""The report in a real browser: on a phone, on a desk, in the dark and on paper."""

import pytest

import tests.browser  # noqa: F401 - skips the module where there is none
from tf_unravel.reproduction.report.document import Code, Grid, Heading, Text, page

LINES = """() => [...document.querySelectorAll("tr")].map(row => {
    const style = getComputedStyle(row.cells[0]);
    const padding = parseFloat(style.paddingTop) + parseFloat(style.paddingBottom);
    return (row.getBoundingClientRect().height - padding) / parseFloat(style.lineHeight);
})"""
WIDTHS = "() => [document.documentElement, ...document.querySelectorAll('table')].map(each => each.scrollWidth)"
PAPER = 1046  # A4 across, less the margins, in pixels of CSS
A_SENTENCE = "Feature clustering was chosen on the validation classes by three trainings that nothing else uses. "


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Tables with the long cells that reports have: texts, figures with intervals, commands."""
    figures = ["52.15 \u00b1 0.42 (3 trainings, 2,000 tasks each) at rate 0.03"] * 5
    blocks = [
        Heading("A report", 1), Text(A_SENTENCE * 3), Code("tf-unravel paper report --scale=cifar_fs " * 4),
        Grid(["network", *"abcde", "notes"], [["conv4-64", *figures, A_SENTENCE * 3], ["r2d2", *figures, ""]]),
        Grid(["a claim of the paper", "here"], [[A_SENTENCE, "holds"], [A_SENTENCE * 2, "does not hold"]]),
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(blocks), encoding="utf-8")
    return path


def check(chromium, path):
    for width in (412, 1280):
        for scheme in ("light", "dark"):
            context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab = context.new_page()
            tab.goto(path.as_uri())
            assert tab.evaluate(WIDTHS)[0] == width, "the page scrolls sideways"
            assert width > 412 or max(tab.evaluate(LINES)) < 4.2
            ink, paper = tab.evaluate("() => { const s = getComputedStyle(document.body); return [s.color, "
                                      "s.backgroundColor] }")
            assert (sum(map(int, ink[4:-1].split(","))) > sum(map(int, paper[4:-1].split(",")))) == (scheme == "dark")
            context.close()
    tab = chromium.new_page(viewport={"width": PAPER, "height": 700})
    tab.emulate_media(media="print")
    tab.goto(path.as_uri())
    assert max(tab.evaluate(WIDTHS)) <= PAPER, "a table is cut on paper"
    assert tab.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    tab.close()


def test_long_cells(written, chromium):
    check(chromium, written)


@pytest.mark.long
def test_the_smoke_report(smoke, chromium):
    check(chromium, smoke[0] / "report" / "report.html")
