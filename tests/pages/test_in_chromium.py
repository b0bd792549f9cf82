"""Pages in Chromium: nothing is requested, nothing complains, and they can be read and used."""

import os
import re

import pytest
from page_data import HOSTILE, quality

from benchmarks.chromium import PHONE, browser, find_chromium
from edgeq.pages.compare_page import write_compare_page
from edgeq.pages.run_page import write_run_page
from edgeq.pages.runs_page import write_runs_page

LARGEST = 3_000_000  # bytes
CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
    pytest.mark.skipif(os.name == "nt", reason="it is driven by pipes as POSIX has them"),
]
# of all texts those that stand out least; colours lie over one another, in SVG they are fills
CONTRAST = """
(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = ([r, g, b, a = 1], below) =>
    [r, g, b].map((each, n) => each * a + below[n] * (1 - a));
  const linear = (each) => (each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) =>
    0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (node) => node
    ? over(parse(getComputedStyle(node).backgroundColor), behind(node.parentElement))
    : [255, 255, 255];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim();
    const node = texts.currentNode.parentElement;
    if (!text || ["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const below = behind(node);
    const above = over(parse(node.closest("svg") ? style.fill : style.color), below);
    const [dark, bright] = [light(above), light(below)].sort((a, b) => a - b);
    found.push([(bright + 0.05) / (dark + 0.05), node.tagName, text.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 3);
})()
"""
READABLE = 4.5  # contrast of text by WCAG 2, level AA


@pytest.fixture(scope="module")
def page():
    with browser(CHROMIUM) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(full_run, hostile_run, make_run, tmp_path_factory):
    """One page of each kind, by name."""
    place = tmp_path_factory.mktemp("pages")
    targets = [quality(HOSTILE), quality("b/gguf/x.gguf", bytes=None), quality("c", kl=0.5)]
    pairs = [{"a": HOSTILE, "b": "c", "kl_difference": -0.4, "interval": [-0.5, -0.3]}]
    compared = {"reference": HOSTILE, "targets": targets, "pairs": pairs}
    return {
        "run": write_run_page(full_run),
        "older run": write_run_page(make_run("older")),
        "hostile run": write_run_page(hostile_run),
        "runs": write_runs_page([full_run, hostile_run, make_run("third")], place / "runs.html"),
        "compared": write_compare_page(compared, place / "compared.html"),
        "measured": write_compare_page(quality(HOSTILE), place / "measured.html"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "hostile run",
        "compared",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("run", "older run", "runs", "measured")
        ),
    ],
)
def test_a_page_is_quiet_and_can_be_read(page, pages, name):
    """Nothing is requested, nothing complains, no name is more than text, on desktop and phone."""
    seen = page.open(pages[name])
    assert pages[name].stat().st_size < LARGEST
    figures, drawn = page.evaluate(
        "[document.querySelectorAll('figure.chart').length,"
        " document.querySelectorAll('figure.chart .plot svg path').length]"
    )
    assert figures >= 1 and drawn > 4 * figures
    if name not in ("run", "older run"):
        check_hostile_names_are_text(page)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for dark in (False, True):
        page.show(dark=dark)
        page.settle()
        ratios = page.evaluate(CONTRAST)
        assert len(ratios) == 3 and all(ratio >= READABLE for ratio, *_ in ratios), ratios
    page.show(size=PHONE)
    page.settle()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    widths = page.evaluate("[...document.querySelectorAll('.plot svg')].map(s => s.clientWidth)")
    assert len(widths) == figures and all(200 < width < PHONE[0] for width in widths)
    assert (seen.requests, seen.complaints) == ([], [])


def check_hostile_names_are_text(page):
    text = page.evaluate("document.body.innerText")
    assert HOSTILE in text
    assert "`49" not in text
    # what hovers over a chart is built when it is shown
    hovers = page.evaluate(
        """[...document.querySelectorAll('.plot')].map((plot) => {
          const chart = echarts.getInstanceByDom(plot);
          chart.dispatchAction({type: 'showTip', seriesIndex: 0, dataIndex: 0});
          return plot.innerText;
        })"""
    )
    assert all(hovers)
    assert page.evaluate("window.planted === undefined")
    elements = "document.querySelectorAll('img, iframe, object, embed, link, base, form')"
    assert page.evaluate(f"{elements}.length") == 0
    assert page.evaluate("document.scripts.length") == 3  # data, library, page


def test_a_planted_request_and_a_planted_error_are_seen(page, pages, tmp_path):
    text = pages["run"].read_text(encoding="utf-8")
    image = '<img src="http://127.0.0.1:9/x.png">'
    planted = tmp_path / "planted.html"
    without_policy = re.sub(r"<meta http-equiv=[^>]*>", "", text)
    assert without_policy != text
    planted.write_text(without_policy.replace("</main>", f"{image}</main>"), encoding="utf-8")
    seen = page.open(planted)
    assert seen.requests == ["http://127.0.0.1:9/x.png"]
    planted.write_text(
        without_policy.replace("</main>", "<script>missing()</script></main>"), encoding="utf-8"
    )
    seen = page.open(planted)
    assert any("missing is not defined" in each for each in seen.complaints)
    # with its policy, a page neither fetches nor runs what is planted, and says so
    planted.write_text(
        text.replace("</main>", f"{image}<script>window.planted = 1</script></main>"),
        encoding="utf-8",
    )
    seen = page.open(planted)
    assert any("Content Security Policy" in each for each in seen.complaints)
    assert page.evaluate("window.planted === undefined")


def test_the_switch_changes_colours_of_page_and_charts(page, pages):
    page.open(pages["run"])
    looks = """[getComputedStyle(document.body).backgroundColor,
        document.querySelector('#chart-errors svg text').getAttribute('fill')]"""
    light = page.evaluate(looks)
    page.evaluate("document.getElementById('theme').click()")
    page.settle()
    dark = page.evaluate(looks)
    assert dark[0] != light[0] and dark[1] != light[1]
    page.evaluate("document.getElementById('theme').click()")
    page.settle()
    assert page.evaluate(looks) == light


def test_views_and_series_are_chosen_by_the_keyboard(page, pages):
    """Buttons of the first chart: each can be reached and pressed, and says whether it is on."""
    page.open(pages["run"])
    page.evaluate("document.querySelector('#chart-errors .views button:nth-child(2)').focus()")
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, key=" ", code="Space", text=" ")
    page.settle()
    pressed = (
        "[...document.querySelectorAll('#chart-errors %s button')]"
        ".map((each) => [each.innerText, each.ariaPressed])"
    )
    views = page.evaluate(pressed % ".views")
    assert [name for name, on in views if on == "true"] == ["round to nearest"]
    page.evaluate("document.querySelector('#chart-errors .legend button').click()")
    legend = page.evaluate(pressed % ".legend")
    assert [name for name, on in legend if on == "false"] == ["q_proj"]
    shown = page.evaluate(
        "echarts.getInstanceByDom(document.querySelector('#chart-errors .plot'))"
        ".getOption().legend[0].selected"
    )
    assert shown == {"q_proj": False}


def test_every_chart_has_a_name_and_its_numbers_as_a_table(page, pages):
    page.open(pages["run"])
    charts = page.evaluate(
        """[...document.querySelectorAll('figure.chart')].map((figure) => [
          figure.querySelector('.plot').getAttribute('aria-label'),
          figure.querySelectorAll('table tbody tr').length])"""
    )
    assert len(charts) == 5
    assert all(label.startswith("Chart: ") and rows for label, rows in charts)
    unnamed = """[...document.querySelectorAll('button, [role=region], table')].filter((each) =>
        !(each.innerText.trim() || each.ariaLabel || each.querySelector('caption')))"""
    assert page.evaluate(f"{unnamed}.length") == 0
