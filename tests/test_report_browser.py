"""The report in a real browser, headless Chromium: what it shows, by mouse and by keyboard, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import pytest
from report_runs import HOSTILE, make_table, write_run

from ccpo import Vote
from ccpo.evaluation.report import write_report
from ccpo.training.episodes import describe_columns

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
FLAGS += ("disable-component-update", "disable-sync")
AXE = Path(__file__).parents[1] / "outputs" / "axe-core" / "package" / "axe.min.js"
PROBLEMS = [f"What is {i} + {i}?" for i in range(30)]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: `pip install playwright`")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: `apt-get install chromium`")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:  # closes its event loop with the module
        launched = started.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Four steps of thirty problems, of which the first of the first step are hostile texts."""
    tables = {step: make_table(step, [*PROBLEMS], step) for step in (5, 10, 15, 20)}
    for name in ("problem", "thought", "thinker_rating"):
        tables[5][name][: len(HOSTILE)] = HOSTILE.values()
    tables[20]["seen"] = ["logged by the judge"] * len(PROBLEMS)
    run = write_run(tmp_path_factory.mktemp("report") / "first", tables)
    other = {5: make_table(5, PROBLEMS, 1)}
    other[5]["joint_answer"][3] = "only in the second run"
    second = write_run(run.with_name("second"), other)
    return write_report(run), write_report([run, second], run.parent / "both.html")


@pytest.fixture
def look(browser):
    """Opens a page, and holds it to no error, no warning and no request."""
    pages, said = [], []

    def opened(path, width=1280, scheme="light"):
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
        page.set_default_timeout(10_000)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=30_000)
        pages.append(page)
        return page

    yield opened
    assert said == []
    for page in pages:
        assert "owned" not in page.title() and not page.locator("img").count()
        page.context.close()


def count(page) -> int:
    """How many episodes are listed, once the page has filtered them."""
    page.wait_for_timeout(250)
    return int(page.inner_text("#count").split()[0].replace(",", ""))


def test_curves_and_episodes_are_there(report, look):
    page = look(report[0])
    assert page.inner_text("h1") == "first" and page.inner_text("#facts") == "step 20 of 40"
    assert page.locator("svg[role=img]").count() == 5 and page.locator("svg path").count() > 50
    ink = page.locator("svg .fill-ink").first.evaluate("node => getComputedStyle(node).fill")
    assert ink == page.evaluate("getComputedStyle(document.body).color")
    assert page.inner_text("#sample") == "All 120 episodes that were logged."
    assert page.locator("#list li").count() == 50 and page.inner_text("#page") == "1 to 50"
    page.click("#next")
    page.click("#next")
    assert page.inner_text("#page") == "101 to 120" and page.locator("#next").is_disabled()
    page.locator("details.numbers summary").first.click()
    page.wait_for_selector("details.numbers th")  # filled when it has opened
    assert page.locator("details.numbers th[scope=col]").all_inner_texts() == ["step", "joint", "solo"]
    page.locator("#about summary").first.click()
    assert page.get_by_text("<b>ccpo</b>", exact=True).is_visible()


def test_filters_and_search(report, look):
    page = look(report[0])
    tables = [make_table(step, PROBLEMS, step) for step in (5, 10, 15, 20)]

    def told(name, wanted):
        return sum(value == wanted for table in tables for value in table[name])

    page.select_option("#category", "helped")
    assert count(page) == told("thinker_effect", "helped") > 0
    assert page.locator("#list .chip:text-is('helped')").count() == min(50, count(page))
    page.select_option("#category", "unscorable")
    assert count(page) == 24
    page.click("text=Show all")
    assert count(page) == 120
    for box, column in (
        ("#leaked", "thinker_leaked"),
        ("#truncated", "solver_truncated"),
        ("#no_answer", "no_answer"),
    ):
        page.check(box)
        assert count(page) == told(column, True)
        page.uncheck(box)
    page.fill("#from", "10")
    page.fill("#to", "15")
    assert count(page) == 60
    page.fill("#query", "ANSWER 12 OF step 10")
    assert count(page) == 1
    page.fill("#query", "nowhere")
    assert count(page) == 0 and page.inner_text("#page") == "none"


def test_an_episode_has_all_that_was_logged(report, look):
    page = look(report[0])
    page.fill("#query", "answer 26 of step 20")
    assert count(page) == 1
    page.locator("#list button").click()
    text = page.inner_text("#detail")
    for part in (
        *("Step 20", "What is 6 + 6?", "gold 26", "thought 26 of step 20", "answer 26 of step 20", "alone 26"),
        *("credit +0.500", "advantage -0.250", "thinker 0.7, solver 0.3", "Without thinker", "helped"),
        *("seen", "logged by the judge"),
    ):
        assert part in text, part
    assert "Think about What is 6 + 6?" not in text
    page.get_by_text("What thinker was asked").click()
    page.get_by_text("What thinker wrote as its rating").click()
    assert "Think about What is 6 + 6?" in page.inner_text("#detail")
    assert '{"outcome": "correct", "pair": [0.7, 0.3]}' in page.inner_text("#detail")


def test_the_same_problem_early_and_late(report, look):
    page = look(report[0])
    page.fill("#query", "What is 7 + 7?")
    assert count(page) == 4
    page.locator("#list button").nth(1).click()
    assert page.locator("article").count() == 1
    page.click("text=Early and late")
    assert [text.split()[1] for text in page.locator("article h3").all_inner_texts()] == ["5", "20"]
    page.locator("select.beside").select_option(label="step 10: right")
    assert [text.split()[1] for text in page.locator("article h3").all_inner_texts()] == ["5", "10"]
    left, right = (page.locator("article").nth(i).bounding_box() for i in range(2))
    assert left["y"] == right["y"] and left["x"] < right["x"]
    page.locator("select.beside").select_option(label="nothing")
    assert page.locator("article").count() == 1


def test_several_runs(report, look):
    page = look(report[1])
    assert page.inner_text("h1") == "first and second" and count(page) == 150
    assert page.get_by_text("second", exact=True).first.is_visible()
    page.select_option("#run", label="second")
    assert count(page) == 30
    page.fill("#query", "only in the second run")
    assert count(page) == 1
    page.locator("#list button").click()
    assert page.inner_text("article h3").startswith("Step 5, second")
    page.click("text=Early and late")
    assert "Step 20, first" in page.locator("article").nth(1).inner_text()


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_text(kind, report, look):
    page = look(report[0])
    place = list(HOSTILE).index(kind)
    page.locator("#list button").nth(place).click()
    shown = page.locator("article pre").all()
    texts = [block.evaluate("node => node.textContent") for block in shown]
    assert texts[0] == HOSTILE[kind] and texts.count(HOSTILE[kind]) == 3
    assert page.locator("article script, article img, article b").count() == 0
    if kind == "marks":  # they end where the text does
        assert page.locator("article pre").first.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_half_a_character(tmp_path, look):
    """Lone surrogates, which no file of a run can hold, in what is packed."""
    path = write_report(write_run(tmp_path, {5: make_table(5, PROBLEMS)}, recipe={"prompt": "\ud800 half"}))
    page = look(path)
    page.locator("#about summary").first.click()
    assert page.locator("#about td").first.evaluate("node => node.textContent.charCodeAt(0)") == 0xD800


def test_policy_forbids_what_a_text_would_need(report, browser):
    """Were a text taken for HTML all the same, nothing of it would run."""
    page = browser.new_page()
    page.goto(report[0].as_uri())
    page.wait_for_selector("html[data-ready]")
    with pytest.raises(playwright.Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    page.evaluate("fetch('http://127.0.0.1:9/').catch(() => { document.title = 'refused'; })")
    page.wait_for_function("document.title === 'refused'")
    page.close()


def test_by_keyboard(report, look):
    page = look(report[0])
    page.focus("#list button")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert page.evaluate("[...document.querySelectorAll('#list button')].indexOf(document.activeElement)") == 1
    page.keyboard.press("Enter")
    assert (
        page.inner_text("article h3").startswith("Step 5") and page.evaluate("document.activeElement.id") == "detail"
    )
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden()
    assert page.evaluate("[...document.querySelectorAll('#list button')].indexOf(document.activeElement)") == 1
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")  # to the next fifty
    assert page.inner_text("#page") == "51 to 100"
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#page") == "1 to 50"
    assert page.evaluate("[...document.querySelectorAll('#list button')].indexOf(document.activeElement)") == 49
    tabs = page.evaluate("[...document.querySelectorAll('#list button')].filter(b => b.tabIndex === 0).length")
    assert tabs == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(scheme, report, look):
    page = look(report[1], width=390, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#list button").nth(6).click()
    assert page.locator("#list").is_hidden() and page.locator("#detail").is_visible()
    page.click("text=Early and late")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("text=Back to the list")
    assert page.locator("#list").is_visible()
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 80) is (scheme == "dark")


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: `npm pack axe-core` in outputs/axe-core, unpacked")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme, report, look):
    page = look(report[1], scheme=scheme)
    page.locator("#list button").nth(6).click()
    page.click("text=Early and late")
    for summary in page.locator("summary").all():
        summary.click()
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then(result => JSON.stringify(result.violations))")
    assert [(rule["id"], rule["impact"]) for rule in json.loads(found)] == []


def test_a_run_without_episodes_says_what_to_set(tmp_path, look):
    page = look(write_report(write_run(tmp_path, {}, [{"step": 1, "credit/joint_accuracy": 0.5}])))
    assert "Set log_completions: true" in page.inner_text("#sample")
    assert page.locator("#browser").is_hidden() and page.locator("#filters").is_hidden()


def test_why_no_episode_is_helped_or_hurt(tmp_path, report, look):
    table = make_table(5, PROBLEMS)
    for name in ("solo_answer", "without_thinker_outcome", "thinker_effect"):
        del table[name]
    page = look(write_report(write_run(tmp_path, {5: table})))
    assert "With removal_eval_steps" in page.inner_text("#unseen")
    assert page.locator("#category option").all_inner_texts() == ["any", "right", "wrong", "unscorable"]
    assert look(report[0]).locator("#unseen").is_hidden()


def test_a_vote_is_listed_by_the_answer_that_a_user_is_shown(tmp_path, look):
    texts = {"voter_1": ["the first"], "voter_2": ["the second"], "voter_3": ["the third"]}
    table = {"problem": ["What?"], "outcome": [1.0], "answer_role": ["voter_2"], **texts}
    run = write_run(tmp_path, {5: table}, columns=describe_columns(Vote(3), "judge"))
    page = look(write_report(run))
    assert page.inner_text("#list .answer") == "the second"


def test_many_episodes_of_one_problem(tmp_path, look):
    page = look(write_report(write_run(tmp_path, {5: make_table(5, ["What?"] * 302)})))
    page.locator("#list button").first.click()
    assert "of 302 with this problem, the first and the last 150 of them" in page.inner_text(".tools")


def test_a_sample_says_how_many_it_leaves_out(tmp_path, look):
    run = write_run(tmp_path, {5: make_table(5, PROBLEMS)})
    page = look(write_report(run, max_episodes=20))
    assert page.inner_text("#sample").startswith("20 of 30 logged episodes, 10 are left out: a sample with every kind")
