"""The docs site in Chromium, from the file system: nothing is fetched, and search finds pages."""

import os
import subprocess
import sys
import time

import pytest
from documents import ROOT

from benchmarks.chromium import PHONE, browser, find_chromium

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt install chromium)"),
    pytest.mark.skipif(os.name == "nt", reason="it is driven by pipes as POSIX has them"),
]
PAGES = ("index.html", "guide/choosing.html", "reference/commands.html", "reference/python.html")
# the search lies in a shadow root
FOUND = """(() => {
  const found = [];
  const walk = (node) => {
    if (node.shadowRoot) walk(node.shadowRoot);
    [...node.children || []].forEach(walk);
    if (node.matches && node.matches(SELECTOR)) found.push(node);
  };
  walk(document);
  return found;
})()"""
FIELD = FOUND.replace("SELECTOR", "'input[type=text]'")
ANSWERS = FOUND.replace("SELECTOR", "'a[href*=\"h=\"]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("docs") / "site"
    subprocess.run([sys.executable, "scripts/site", str(place)], cwd=ROOT, check=True)
    return place


@pytest.fixture(scope="module")
def page():
    with browser(CHROMIUM) as opened:
        yield opened


@pytest.mark.parametrize("name", PAGES)
def test_pages_fetch_nothing_and_fit_on_a_phone(page, site, name):
    seen = page.open(site / name, size=PHONE)
    assert seen.complaints == []
    assert all(address.startswith(("file:", "data:")) for address in seen.requests)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_search_works_from_the_file_system(page, site):
    page.open(site / "index.html")
    page.evaluate("document.querySelector('.md-search button').click()")
    waited(lambda: page.evaluate(f"{FIELD}.length"))
    page.evaluate(f"{FIELD}[0].focus()")
    page.send("Input.insertText", text="importance matrix")
    addresses = waited(lambda: page.evaluate(f"{ANSWERS}.map((each) => each.href)"))
    assert any("calibration.html" in address for address in addresses)


def waited(ask, seconds=20):
    """What a question gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ask():
            return found
        time.sleep(0.1)
    raise AssertionError("nothing came")
