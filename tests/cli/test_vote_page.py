"""The page for votes in a real browser: keys and buttons, safety of what answers hold, and looks on
narrow and dark screens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from answer_files import write_answers, write_rows
from browser import PATIENCE_MS, chromium

from aligner.arena.voting.ballot import Ballot
from aligner.arena.voting.plan import make_plan
from aligner.arena.voting.reading import read_answered
from aligner.arena.voting.server import VoteServer

MODELS = {"masked-x": ["good 0", "good 1"], "masked-y": ["poor 0", "poor 1"]}

ATTACK = (
    "</div></script><script>document.title='owned'</script><img src=x onerror=\"document.title="
    "'owned'\"><b id=bold>bold</b> &lt;i&gt; <a href='javascript:1'>x</a>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


class Opened:
    """The page in a window, and the server behind it."""

    def __init__(self, browser: Any, server: VoteServer, **context: Any) -> None:
        self.server = server
        self.context = browser.new_context(**context)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(server.url)
        self.page.wait_for_selector("#pair:not([hidden]), #end:not([hidden])")

    def press(self, key: str, then: str) -> None:
        """Press a key, and wait until the place says so."""
        self.page.keyboard.press(key)
        self.page.wait_for_selector(f"#place:has-text('{then}')")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    @property
    def votes(self) -> list[dict[str, Any]]:
        log = self.server.ballot.log
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def verdicts(self) -> list[str]:
        return [game["decoding"]["verdict"] for game in self.votes]


def serving(folder: Path, files: list[str]) -> VoteServer:
    sheets = make_plan(read_answered(files), name="ann").sheets
    return VoteServer(Ballot(sheets, "ann", folder / "votes.jsonl"))


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    with serving(tmp_path, write_answers(tmp_path, MODELS)) as server:
        window = Opened(browser, server)
        yield window
        window.context.close()
        assert window.complaints == []
        assert all(url.startswith(server.url) for url in window.requests if url[:5] != "data:")


def test_a_person_votes_with_the_keyboard(opened: Opened) -> None:
    assert opened.text("#place") == "0 of 4 votes"
    for number, key in enumerate("1bxt", 1):
        opened.press(key, f"{number} of 4 votes")
    assert opened.verdicts == ["first", "second", "bothbad", "tie"]
    assert opened.text("#end h1") == "All pairs are voted on"
    opened.page.click("text=Finish")
    opened.page.wait_for_selector("text=Done for now")
    assert opened.server.finished.wait(120)


def test_the_vote_is_for_the_answer_that_was_seen_there(opened: Opened) -> None:
    for number in range(1, 5):
        key = "1" if opened.text("#first .text").startswith("good") else "2"
        opened.press(key, f"{number} of 4 votes")
    for game in opened.votes:
        best = "model_first" if game["score_first"] == 1 else "model_second"
        assert game[best] == "masked-x"
    assert {game["model_first"] for game in opened.votes} == {"masked-x", "masked-y"}


def test_no_model_is_named_anywhere_on_the_page(opened: Opened) -> None:
    for number in range(1, 5):
        assert "masked" not in opened.page.content()
        opened.press("t", f"{number} of 4 votes")
    assert "masked" not in opened.page.content()


def test_a_vote_is_taken_back_and_a_pair_is_left_for_later(opened: Opened) -> None:
    page = opened.page
    first = opened.text("#prompt .text")
    page.keyboard.press("n")
    page.wait_for_selector(f"#prompt .text:not(:has-text('{first}'))")
    assert page.is_disabled("#back")
    page.click("#votes >> text=B is better")
    page.wait_for_selector("#place:has-text('1 of 4')")
    page.keyboard.press("u")
    page.wait_for_selector("#second.chosen")
    assert page.get_attribute("[data-verdict=second]", "aria-pressed") == "true"
    page.keyboard.press("n")
    page.wait_for_selector(".answers:not(:has(.chosen))")
    page.keyboard.press("u")
    page.wait_for_selector("#second.chosen")
    page.keyboard.press("1")
    page.wait_for_selector(".answers:not(:has(.chosen))")
    assert opened.verdicts == ["second", "first"]
    assert [game["attempt"] for game in opened.votes] == [1, 2]


def test_shortcuts_of_the_browser_are_no_votes(opened: Opened) -> None:
    for key in ("Control+1", "Control+b", "Alt+t", "Meta+x", "Space", "Enter", "q"):
        opened.page.keyboard.press(key)
    opened.press("t", "1 of 4 votes")
    assert opened.verdicts == ["tie"]


def test_the_second_look_is_said(opened: Opened) -> None:
    opened.press("1", "1 of 4 votes")
    assert "other order" not in opened.text("#place")
    opened.press("1", "2 of 4 votes · second look, in the other order")
    assert opened.verdicts == ["first", "first"]


def test_another_window_cannot_vote_on_what_is_gone(opened: Opened, browser: Any) -> None:
    other = Opened(browser, opened.server)
    opened.press("1", "1 of 4 votes")
    other.press("2", "1 of 4 votes")
    assert "voted on in another window" in other.text("#note")
    assert opened.verdicts == ["first"]
    other.context.close()


def test_answers_cannot_run_or_become_a_part_of_the_page(browser: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": ATTACK}]
    files = []
    for name in "xy":
        row = {"prompt": turns, "answer": f"{ATTACK}\n```html\n{ATTACK}\n```\n{name}"}
        files.append(str(write_rows(tmp_path / f"{name}.jsonl", [row])))
    with serving(tmp_path, files) as server:
        window = Opened(browser, server)
        assert window.text("#prompt .text") == ATTACK
        shown = window.text("#first .text")
        assert shown.count(ATTACK) == 2
        assert window.page.title() == "Votes · aligner"
        assert window.page.query_selector_all("#pair img, #pair script, #pair a, #bold") == []
        assert len(window.page.query_selector_all("#first code")) == 1
        assert window.complaints == []
        window.context.close()


def test_a_page_of_another_site_can_neither_read_nor_vote(browser: Any, opened: Opened) -> None:
    """Even one that got to know the address."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>other</title>")

        def log_message(self, format: str, *args: Any) -> None: ...

    site = HTTPServer(("127.0.0.1", 0), Site)
    Thread(target=site.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"http://127.0.0.1:{site.server_address[1]}/")
    tried = """async ([url, kind, mode]) => {
        const said = {method: "POST", headers: {"Content-Type": kind}, mode,
                      body: JSON.stringify({turn: 0, verdict: "first"})};
        try { return (await fetch(url + "vote", said)).type } catch (error) { return "refused" }
    }"""
    for kind, mode in (
        ("application/json", "cors"),
        ("text/plain", "no-cors"),
        ("text/plain", "cors"),
    ):
        assert page.evaluate(tried, [opened.server.url, kind, mode]) in ("refused", "opaque")
    framed = "(url) => { const f = document.createElement('iframe'); f.src = url; \
        document.body.append(f); return new Promise((done) => f.onload = () => done(1)) }"
    page.evaluate(framed, opened.server.url)
    assert "Which answer" not in "".join(frame.content() for frame in page.frames)
    page.close()
    site.shutdown()
    site.server_close()
    assert opened.votes == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen_and_can_be_read(
    browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    long = {"x": ["w" * 4000 + "\n" + "word " * 3000], "y": ["| a | b |\n" * 50]}
    with serving(tmp_path, write_answers(tmp_path, long)) as server:
        screen = {"width": width, "height": 700}
        window = Opened(browser, server, color_scheme=scheme, viewport=screen)
        page = window.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colours = "getComputedStyle(document.querySelector('#first')).{}"
        back, ink = (
            sum(map(int, page.evaluate(colours.format(name))[4:-1].split(", ")))
            for name in ("backgroundColor", "color")
        )
        assert abs(back - ink) > 380
        assert (back > ink) == (scheme == "light")
        side = page.evaluate("document.querySelector('#second').offsetLeft")
        assert (side > 300) == (width > 1000)
        for button in page.query_selector_all("#votes button"):
            box = button.bounding_box()
            assert box["height"] >= 44
            assert box["y"] + box["height"] <= 700
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        last = page.query_selector("#second").bounding_box()
        assert last["y"] + last["height"] < page.query_selector("footer").bounding_box()["y"]
        window.context.close()


def test_a_command_that_ended_is_said(browser: Any, tmp_path: Path) -> None:
    with serving(tmp_path, write_answers(tmp_path, MODELS)) as server:
        window = Opened(browser, server)
    window.page.keyboard.press("1")
    window.page.wait_for_selector("#note:has-text('not running any more')")
    assert window.votes == []
    window.context.close()
