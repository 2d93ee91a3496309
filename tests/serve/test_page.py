"""The page at `/`, in a real browser (headless Chromium): what a person sees and does."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from page_server import CONTEXT, PLAIN, PLAIN_TEXT, Script, make_app, serving
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tiny import make_model, train_tokenizer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Script]]:
    script = Script()
    with serving(make_app(script)) as address:
        yield address, script


@pytest.fixture
def script(server: tuple[str, Script]) -> Script:
    server[1].forget()
    return server[1]


@pytest.fixture
def address(server: tuple[str, Script], script: Script) -> str:
    return server[0]


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens pages; at the end none of them has asked another server for anything, or complained on the console."""
    contexts, problems = [], []

    def open_page(address: str, locale: str = "en-GB", **options: Any) -> Page:
        context = browser.new_context(locale=locale, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda request: request.url.startswith(address) or problems.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        # The browser itself notes refused requests; those that a test provokes are answered on the page.
        page.on("console", lambda line: line.text.startswith("Failed to load resource") or problems.append(line.text))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture
def page(open_page: Open, address: str) -> Page:
    page = open_page(address)
    expect(page.locator("h1")).to_have_text("small-harbour")
    return page


def send(page: Page, prompt: str, wait: bool = True) -> None:
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")
    if wait:
        expect(page.locator("article .actions button").first).to_be_visible()
        expect(page.locator("#go")).not_to_have_text(re.compile("Stop|停止"))


def test_text_appears_while_it_is_made(page: Page, script: Script) -> None:
    send(page, "slow", wait=False)
    expect(page.locator(".answer")).to_contain_text(" word word")
    expect(page.locator("#go")).to_have_text("Stop")
    page.keyboard.press("Escape")
    expect(page.locator("#go")).to_have_text("Continue")
    kept = page.locator(".answer").text_content()
    expect(page.locator("article p")).to_contain_text("stopped")
    assert kept
    page.wait_for_timeout(100)
    assert page.locator(".answer").text_content() == kept
    assert script.stopped == 1
    page.locator(".actions").get_by_text("Regenerate").click()
    expect(page.locator(".answer")).to_contain_text(" word word")
    page.click("#go")
    expect(page.locator("#go")).to_have_text("Continue")
    assert page.locator("article").count() == 1
    assert script.bodies[1]["prompt"] == "slow"


def test_an_answer_stopped_before_it_began(page: Page) -> None:
    page.get_by_role("radio", name="Chat").check(force=True)
    send(page, "late", wait=False)
    expect(page.locator("#prompt")).to_have_value("")
    expect(page.locator("#go")).to_have_text("Stop")
    page.keyboard.press("Escape")
    expect(page.locator("#prompt")).to_have_value("late")
    assert page.locator("article").count() == 0
    expect(page.get_by_role("alert")).to_be_empty()


def test_what_an_answer_shows(page: Page) -> None:
    send(page, "Once")
    assert page.locator(".said").text_content() == "Once" + PLAIN_TEXT
    figures = page.locator("article p").text_content() or ""
    left = CONTEXT - 6 - len(PLAIN)
    assert re.search(
        rf"^15 tokens · [\d.]+ tokens/s · first after [\d.]+ s · seed \d+ · end of text · context: {left} of 256 left$",
        figures,
    )
    assert 5 < float(re.findall(r"([\d.]+) tokens/s", figures)[0]) < 500  # the server waits 10 ms before each
    expect(page.locator("#spoken")).to_have_text(PLAIN_TEXT)  # for screen readers, once, at the end
    expect(page.locator("#about")).to_have_text("1.38M parameters · context of 256 tokens")


def test_settings_are_sent_by_the_names_of_the_api(page: Page, script: Script) -> None:
    send(page, "Once")
    drawn = script.bodies[0].pop("seed")
    assert script.bodies[0] == {
        "model": "small-harbour",
        "prompt": "Once",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1,
        "max_tokens": 128,
    }
    expect(page.locator("article p")).to_contain_text(f"seed {drawn} ")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Top-k").fill("40")
    page.get_by_label("Min-p").fill("")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Stop texts").fill("\\n\\n\nEnd")
    page.reload()  # settings are remembered
    send(page, "Once")
    body = script.bodies[1]
    assert (body["temperature"], body["top_k"], body["seed"], body["stop"]) == (0, 40, 7, ["\n\n", "End"])
    assert "min_p" not in body
    expect(page.locator("article p")).not_to_contain_text("seed")  # greedy: nothing is drawn
    page.get_by_text("Back to defaults").click()
    expect(page.get_by_label("Top-k")).to_have_value("0")


@pytest.mark.parametrize("mode", ["Continue", "Chat"])
def test_probabilities(page: Page, script: Script, mode: str) -> None:
    page.get_by_role("radio", name=mode).check(force=True)
    page.get_by_role("switch", name="Token probabilities").check()
    send(page, "Once")
    body = script.bodies[0]
    assert body.get("top_logprobs", body["logprobs"]) == 5
    tokens = page.get_by_role("option")
    expect(tokens).to_have_count(len(PLAIN))
    assert page.locator(".answer").text_content() == PLAIN_TEXT  # signs of white space are drawn, not written
    assert tokens.nth(2).get_attribute("class") == "token p0"
    assert tokens.nth(6).get_attribute("class") == "token p5"
    assert tokens.nth(4).locator(".blank").get_attribute("data-sign") == "↵"
    assert [tokens.nth(i).get_attribute("data-hex") for i in (10, 11, 12)] == ["E6", "B8", None]
    assert tokens.nth(12).text_content() == "港"
    perplexity = math.prod(p for _, p, _ in PLAIN) ** (-1 / len(PLAIN))
    expect(page.locator("article p")).to_contain_text(f"perplexity {perplexity:.2f} ")
    tokens.nth(1).hover()
    rivals = page.get_by_role("tooltip")
    rows = [row.split() for row in rivals.locator("tr").all_inner_texts()]
    assert rows == [["␣green", "34%"], ["␣little", "19%"], ["␣old", "11%"], ["all", "others", "36%"]]
    assert rivals.locator(".taken").inner_text().split() == ["␣old", "11%"]
    page.mouse.move(2, 2)
    expect(rivals).to_be_hidden()
    tokens.first.focus()  # the whole answer is one stop of the Tab key; arrows move within it
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(tokens.nth(10)).to_be_focused()
    assert rivals.locator("tr").first.inner_text().split() == ["‹E6›", "30%"]
    assert tokens.nth(10).get_attribute("aria-describedby") == "rivals"
    page.keyboard.press("Escape")
    expect(rivals).to_be_hidden()
    page.get_by_role("switch").uncheck()
    expect(tokens).to_have_count(0)
    # A chat's answer begins with the space behind `Assistant:`, which is shown as a token only.
    assert page.locator(".answer").text_content() == (PLAIN_TEXT.lstrip() if mode == "Chat" else PLAIN_TEXT)


def test_chat_sends_its_history(page: Page, script: Script) -> None:
    page.get_by_role("radio", name="Chat").check(force=True)
    send(page, "first")
    expect(page.locator("#prompt")).to_have_value("")
    page.get_by_label("System message").fill("Be short.")
    send(page, "second")
    user = [{"role": "user", "content": text} for text in ("first", "second")]
    history = [{"role": "system", "content": "Be short."}, user[0], {"role": "assistant", "content": PLAIN_TEXT}]
    assert script.bodies[0]["messages"] == user[:1]
    assert script.bodies[1]["messages"] == [*history, user[1]]
    assert "system" not in script.bodies[1]
    page.get_by_text("Regenerate").click()
    expect(page.locator("#go")).to_have_text("Send")
    assert script.bodies[2]["messages"] == [*history, user[1]]
    assert page.locator("article").count() == 2
    page.get_by_text("New chat").click()
    send(page, "third")
    assert len(script.bodies[3]["messages"]) == 2


def test_continue_further_and_copy(open_page: Open, address: str, script: Script) -> None:
    page = open_page(address, permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator("h1")).to_have_text("small-harbour")
    send(page, "Once")
    page.get_by_text("Continue further").click()
    expect(page.locator(".said")).to_have_text("Once" + PLAIN_TEXT * 2)
    expect(page.locator("#go")).to_have_text("Continue")
    assert script.bodies[1]["prompt"] == "Once" + PLAIN_TEXT
    page.get_by_text("Copy").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "Once" + PLAIN_TEXT * 2
    expect(page.get_by_text("Copied")).to_be_hidden()
    page.evaluate("navigator.clipboard.writeText('something else')")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as over plain http
    page.get_by_text("Copy", exact=True).click()
    expect(page.get_by_text("Copied")).to_be_visible()
    page.locator("#prompt").press("Control+A")
    page.locator("#prompt").press("Control+V")
    expect(page.locator("#prompt")).to_have_value("Once" + PLAIN_TEXT * 2)
    send(page, "")  # the model may begin by itself; another sample stands below, to compare
    assert page.locator("article").count() == 2
    assert script.bodies[2]["prompt"] == ""


def test_text_of_the_model_stays_text(page: Page) -> None:
    for scored in (False, True):
        page.get_by_role("switch").set_checked(scored)
        send(page, "html")
        answer = page.locator(".answer").last
        expect(answer).to_contain_text("<b>bold</b><img src=/bad")
        expect(answer).to_contain_text("</script>&amp;")
    page.get_by_role("option").nth(1).hover()
    expect(page.get_by_role("tooltip")).to_contain_text("<img␣src=/bad")
    assert page.locator("article :is(b, img, script), #rivals img").count() == 0
    assert page.title() == "small-harbour"


def test_refused_settings(page: Page, script: Script) -> None:
    page.get_by_label("Temperature").fill("3")
    send(page, "Once", wait=False)
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("The server does not accept Temperature: temperature is 3; it has to be from 0 to 2")
    expect(page.get_by_label("Temperature")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert page.locator("article").count() == 0
    page.get_by_label("Temperature").fill("1")
    send(page, "Once")
    expect(alert).to_be_empty()
    page.get_by_role("radio", name="Chat").check(force=True)
    send(page, "busy", wait=False)
    expect(alert).to_contain_text("The server is busy")
    expect(alert).to_contain_text("try again in 7 s")
    expect(page.locator("#prompt")).to_have_value("busy")  # nothing typed is lost
    page.get_by_text("中文").click()
    expect(alert).to_contain_text("请在 7 秒后再试")
    send(page, "long", wait=False)
    expect(alert).to_contain_text("the prompt has 999 tokens")
    expect(page.locator("#prompt")).to_have_attribute("aria-invalid", "true")


def test_a_server_with_a_key(open_page: Open, address: str, script: Script) -> None:
    script.needs_key = "open sesame"
    page = open_page(address)
    expect(page.get_by_role("alert")).to_contain_text("asks for an API key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_label("API key")).to_have_value("")
    page.get_by_label("API key").fill("open sesame")
    page.get_by_text("Use this key").click()
    expect(page.locator("h1")).to_have_text("small-harbour")
    expect(page.get_by_label("API key")).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_empty()
    send(page, "Once")
    assert script.keys == ["Bearer open sesame"]
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    assert page.evaluate("sessionStorage.getItem('xmodel.key')") == "open sesame"


def test_an_answer_that_breaks_off(page: Page) -> None:
    send(page, "break")
    expect(page.get_by_role("alert")).to_contain_text("The connection broke")
    expect(page.locator(".answer")).to_have_text(" the old harbour")
    expect(page.locator("article p")).to_contain_text("broken off")


def test_a_server_that_goes_and_comes_back(open_page: Open, script: Script) -> None:
    with serving(make_app(script)) as address:
        page = open_page(address)
        expect(page.locator("h1")).to_have_text("small-harbour")
    page.clock.install()
    send(page, "Once", wait=False)
    expect(page.get_by_role("alert")).to_contain_text(f"No answer from {address}")
    expect(page.locator("#prompt")).to_have_value("Once")
    with serving(make_app(script), port=int(address.rpartition(":")[2])):
        page.clock.fast_forward(3000)
        expect(page.get_by_role("alert")).to_be_empty()
        page.keyboard.press("Control+Enter")
        expect(page.locator(".answer")).to_have_text(PLAIN_TEXT)


def test_languages(open_page: Open, address: str) -> None:
    page = open_page(address, locale="zh-CN")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#go")).to_have_text("续写")
    send(page, "从前")
    expect(page.locator("article p")).to_contain_text("15 个词元")
    expect(page.get_by_label("温度")).to_be_visible()
    page.get_by_text("English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator("article p")).to_contain_text("15 tokens")
    assert page.locator(".answer").text_content() == PLAIN_TEXT
    shown = page.evaluate("document.body.innerText")
    assert not re.search("[一-鿿]", shown.replace("中文", "").replace("从前", "").replace("港口", ""))
    page.reload()
    expect(page.locator("#go")).to_have_text("Continue")
    undefined = page.evaluate(
        "[...document.querySelectorAll('[data-t], [data-label]')].filter(n => !WORDS[n.dataset.t ?? n.dataset.label])"
        ".map(n => n.outerHTML).concat(Object.entries(WORDS).filter(([_, both]) => both.length !== 2))"
    )
    assert undefined == []


def test_a_phone(open_page: Open, address: str) -> None:
    page = open_page(address, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)

    def fits() -> bool:
        return page.evaluate(
            "document.documentElement.scrollWidth <= 360 && document.querySelector('#log').scrollWidth <= 360"
        )

    assert fits()
    expect(page.get_by_label("Temperature")).to_be_hidden()  # settings are folded
    page.get_by_role("switch").check()
    page.fill("#prompt", "x" * 200)
    page.locator("#go").tap()
    expect(page.get_by_role("option")).to_have_count(len(PLAIN))
    assert fits()
    page.get_by_role("option").nth(2).tap()
    box = page.get_by_role("tooltip").bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    page.get_by_text("Settings").tap()
    expect(page.get_by_label("Temperature")).to_be_visible()
    expect(page.locator("#go")).to_be_in_viewport()
    assert fits()


def test_contrast_and_names(page: Page) -> None:
    page.get_by_role("switch").check()
    send(page, "Once")
    page.get_by_role("option").nth(6).hover()
    contrast = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(contrast) == []
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
    nameless = "[...document.querySelectorAll('input, textarea, button')]"
    nameless += ".filter(n => !(n.ariaLabel || n.labels?.length || n.textContent)).map(n => n.outerHTML)"
    assert page.evaluate(nameless) == []


@pytest.fixture(scope="module")
def real_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real server, on a tiny random model."""
    Service = pytest.importorskip("xmodel.serve.app", reason="the server is not here").Service

    from xmodel.inference.engine import Engine
    from xmodel.inference.subjects import Subject

    tokenizer = train_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    model = make_model(tokenizer.vocab_size)
    about = {"parameters": 12345, "dtype": "float32", "device": "cpu"}
    subject = Subject(model, tokenizer, True, "tiny", None, about)
    with Engine(subject) as engine, serving(Service(subject, engine).app) as address:
        yield address


def test_with_the_real_server(open_page: Open, real_address: str) -> None:
    page = open_page(real_address)
    expect(page.locator("h1")).to_have_text("tiny")
    expect(page.locator("#about")).to_have_text("12.3K parameters · context of 64 tokens")
    expect(page.get_by_label("Max tokens")).to_have_value("64")
    asked = {"prompt": "Mira went", "max_tokens": 24, "temperature": 0.8, "top_p": 0.95}
    for seed in range(20):  # a random model may end its text soon
        expected = httpx.post(real_address + "/v1/completions", json=asked | {"seed": seed}).json()
        if expected["choices"][0]["finish_reason"] == "length":
            break
    page.get_by_label("Max tokens").fill("24")
    page.get_by_label("Seed").fill(str(seed))
    send(page, "Mira went")
    answer = page.locator("article").last
    assert answer.locator(".answer").text_content() == expected["choices"][0]["text"]
    left = 64 - expected["usage"]["total_tokens"]
    expect(answer.locator("p")).to_contain_text("24 tokens · ")
    expect(answer.locator("p")).to_contain_text(f"token limit · context: {left} of 64 left")
    page.get_by_role("switch").check()
    send(page, "Mira went")
    expect(answer.get_by_role("option")).to_have_count(24)
    assert answer.locator(".answer").text_content() == expected["choices"][0]["text"]
    answer.get_by_role("option").first.hover()
    assert page.locator("#rivals tr").count() in (6, 7)  # the five likeliest, all others, and what was drawn
    page.get_by_role("radio", name="Chat").check(force=True)
    send(page, "小林")
    expect(page.get_by_role("option").first).to_be_visible()
    page.get_by_label("Min-p").fill("7")
    send(page, "小林", wait=False)
    expect(page.get_by_role("alert")).to_contain_text("The server does not accept Min-p")
    page.get_by_label("Min-p").fill("0")
    send(page, "小林" * 100, wait=False)
    expect(page.get_by_role("alert")).to_contain_text("The server does not accept the conversation: the prompt has")
