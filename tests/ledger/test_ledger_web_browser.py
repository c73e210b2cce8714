"""The ledger's pages in a real browser: log in, look up, drill down; a phone and a desk; nobody else is asked."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from .served import TOKEN, filled, running

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from chromium import Chromium

pytestmark = pytest.mark.browser

CUT_OFF = """
(() => {
  const wide = document.documentElement.clientWidth, out = [];
  for (const node of document.querySelectorAll('body *')) {
    if (node.parentElement.closest('.scroll, pre, svg')) continue;
    const box = node.getBoundingClientRect();
    if (box.width && (box.right > wide + 1 || box.left < -1)) out.push(node.tagName + ' ' + Math.round(box.right));
  }
  return out;
})()
"""
SMALL_TARGETS = """
[...document.querySelectorAll('form.search button, form.search input, form.search select')]
  .filter(n => n.getBoundingClientRect().height < 40).map(n => n.outerHTML)
"""
PICTURES = os.environ.get("CONFIDE_PICTURES")  # a folder to look at what the tests saw


class Visitor:
    """Somebody at a browser."""

    def __init__(self, browser: Chromium, port: int, width: int) -> None:
        self.browser, self.base, self.width = browser, f"http://127.0.0.1:{port}", width
        mobile = width < 600
        browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=mobile)
        browser.send("Network.clearBrowserCookies")

    def go(self, path: str) -> None:
        self.browser.events.clear()
        self.browser.send("Page.navigate", url=self.base + path)
        self.loaded()

    def send(self, script: str) -> None:
        """Do something that leads to another page."""
        self.browser.events.clear()
        self.browser.evaluate(script)
        self.loaded()

    def loaded(self) -> None:
        until = time.monotonic() + 60
        while not any(event.get("method") == "Page.loadEventFired" for event in self.browser.events):
            assert time.monotonic() < until
            self.browser.events.append(self.browser._message())

    def login(self) -> None:
        self.go("/")
        self.send(f"document.querySelector('input[name=token]').value = {TOKEN!r}; document.forms[0].submit()")

    def look_up(self, who: str) -> None:
        self.go("/")
        self.send(
            f"document.querySelector('input[name=who]').value = {who!r}; document.querySelector('form.search').submit()"
        )

    def check(self, name: str) -> None:
        """What holds for every page."""
        browser = self.browser
        assert browser.evaluate("window.innerWidth") == self.width
        assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert browser.evaluate(CUT_OFF) == []
        assert browser.evaluate(SMALL_TARGETS) == []
        assert browser.evaluate("document.querySelectorAll('h1').length") == 1
        assert browser.evaluate("getComputedStyle(document.body).marginTop") == "0px"  # the style sheet is at work
        assert browser.evaluate("document.querySelectorAll('script').length") == 0
        assert browser.evaluate("document.cookie") == ""  # not for scripts
        assert "must not leave" in browser.evaluate("document.body.innerText")
        assert all(url.startswith(self.base + "/") for url in browser.requests())
        assert TOKEN not in browser.evaluate("location.href + document.body.innerHTML")
        said = [text for text in browser.complaints() if "401" not in text]  # the login form is answered with 401
        assert said == []
        if PICTURES:
            browser.screenshot(Path(PICTURES) / f"{name}-{self.width}.png")


@pytest.fixture(scope="module")
def browser():
    with Chromium() as one:
        yield one


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("web") / "ledger.sqlite")


@pytest.mark.parametrize("width", [390, 1280])
def test_a_visit(browser, ledger, width):
    with running(ledger) as server:
        one = Visitor(browser, server.server_port, width)
        one.go("/")
        one.check("login")
        one.login()
        one.check("overview")
        assert browser.evaluate("location.pathname") == "/"
        assert browser.evaluate("document.querySelectorAll('figure > svg').length") == 2
        assert browser.evaluate(
            "[...document.querySelectorAll('rect')].some(r => r.getBoundingClientRect().height > 5)"
        )
        one.look_up("patient-3")
        one.check("person")
        assert browser.evaluate("location.pathname").startswith("/person/")
        assert "patient-3" not in browser.evaluate("location.href + document.body.innerHTML")
        one.send("document.querySelector('td a').click()")
        one.check("release")
        assert browser.evaluate("location.pathname").startswith("/releases/")
        one.go("/flows")
        one.check("flows")
        one.go("/journal")
        one.send("document.querySelector('form.search').submit()")
        one.check("journal")
        assert "nothing differs" in browser.evaluate("document.body.innerText")
        one.look_up("nobody-knows-them")
        one.check("unknown")
        one.send("document.querySelector('.bar form').submit()")
        assert browser.evaluate("document.querySelectorAll('input[name=token]').length") == 1
        one.go("/flows")
        assert "Log in first" in browser.evaluate("document.body.innerText")


def test_scripts_do_not_run_even_if_they_got_in(browser, ledger):
    """The policy is the second wall: a script put into the page by hand is refused by the browser."""
    with running(ledger) as server:
        one = Visitor(browser, server.server_port, 1280)
        one.login()
        browser.evaluate(
            "const i = document.createElement('img'); i.src = 'http://example.com/x.png'; document.body.append(i);"
            "document.body.setAttribute('onclick', 'document.title = 1'); document.body.click()"
        )
        time.sleep(0.5)
        assert browser.evaluate("document.title").startswith("Ledger")
        assert any("Content Security Policy" in text for text in browser.complaints())
