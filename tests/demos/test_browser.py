"""The page in real Chromium: what people do with it."""

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture
def visit(page, browser) -> Iterator:
    """visit("Motion", width=390) opens the page at a tab; nothing may go wrong on it or leave the machine."""
    opened = []

    def visit(tab: str, *, width: int = 1280, scheme: str = "light") -> SimpleNamespace:
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
        context.set_default_timeout(240_000)
        window = context.new_page()
        trouble: list[str] = []
        window.on("pageerror", lambda error: trouble.append(str(error)))
        window.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
        window.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((page.url, "data:", "blob:", "about:")) else trouble.append(asked.url)
            ),
        )
        window.goto(page.url)
        window.wait_for_selector(".timeline .row")
        found = window.get_by_role("tab", name=tab)
        if not found.is_visible():  # on a phone: behind the menu of tabs that do not fit
            window.locator(".overflow-menu > button").click()
            found = window.locator(".overflow-dropdown button", has_text=tab)
        found.click()
        panel = window.locator("[role=tabpanel]:visible")
        opened.append((context, trouble))
        return SimpleNamespace(
            window=window,
            panel=panel,
            prompts=lambda: [field.input_value() for field in panel.locator("input.prompt").all()],
            starts=lambda: [field.input_value() for field in panel.locator("input.start").all()],
            estimate=lambda: panel.locator(".estimate").first.inner_text(),
            progress=panel.locator(".progress").first,
        )

    yield visit
    for context, trouble in opened:
        assert not trouble
        context.close()


def quick(seen: SimpleNamespace, steps: int = 2) -> None:
    """Few steps, so that a test is short."""
    seen.panel.get_by_text("More settings").click()
    field = seen.panel.get_by_label(re.compile("number input for Denoising steps")).first
    field.fill(str(steps))
    field.press("Tab")


def test_rows_are_added_moved_timed_and_removed_also_by_keyboard(visit) -> None:
    seen = visit("Motion")
    assert seen.prompts() == ["a person walks", "waves with the right hand", "runs"]
    seen.panel.get_by_role("button", name="Add a prompt").click()
    seen.window.keyboard.type("jumps | up")
    assert seen.prompts()[-1] == "jumps | up" and seen.starts() == ["0", "4", "7", "11"]
    seen.window.keyboard.press("Alt+ArrowUp")
    assert seen.prompts() == ["a person walks", "waves with the right hand", "jumps / up", "runs"]
    seen.panel.get_by_role("button", name="Move prompt 1 later").click()
    assert seen.prompts()[:2] == ["waves with the right hand", "a person walks"]
    seen.panel.get_by_role("button", name="Remove prompt 1").click()
    assert seen.prompts() == ["a person walks", "jumps / up", "runs"] and seen.starts() == ["0", "7", "11"]
    first = seen.panel.get_by_label("Prompt 1", exact=True)
    first.press("Enter")
    assert seen.starts() == ["0", "3.5", "7", "11"]
    seen.window.keyboard.type("bows")
    seen.panel.get_by_label("Start of prompt 2").fill("9")
    seen.panel.get_by_label("Start of prompt 2").press("Tab")
    assert seen.starts() == ["0", "7", "9", "11"] and seen.prompts()[2] == "bows"
    seen.window.wait_for_function("document.body.innerText.includes('starts at 11 s')")
    seen.panel.get_by_label("Length in seconds").fill("14")
    seen.window.wait_for_function("document.body.innerText.includes('280 frames: about')")


def test_a_motion_is_made_seen_and_played(visit) -> None:
    seen = visit("Motion")
    quick(seen)
    seen.panel.get_by_role("button", name="Generate").click()
    seen.panel.locator(".done").wait_for(timeout=240_000)
    assert "220 frames" in seen.progress.inner_text()
    inside = seen.window.frame_locator("iframe")
    inside.locator("#caption").wait_for(timeout=240_000)
    assert inside.locator("#caption").inner_text() in ("a person walks", "waves with the right hand", "runs")
    assert seen.panel.locator(".files a").count() >= 4
    with seen.window.expect_download() as download:
        seen.panel.locator(".files a").first.click()
    assert download.value.path().stat().st_size > 500
    seen.panel.get_by_text("The same run as settings").click()
    seen.window.wait_for_function(
        "document.body.innerText.includes('longtake motion') && document.body.innerText.includes('\"seed\": 1')"
    )


def test_an_example_is_one_click_stop_keeps_what_is_done_and_a_reload_begins_anew(visit) -> None:
    seen = visit("Video", width=390, scheme="dark")
    seen.panel.get_by_role("button", name="A knight walks").click()
    seen.panel.locator("img.glimpse").wait_for(timeout=240_000)
    top = seen.progress.bounding_box()["y"]
    assert 0 <= top < 860, "the page scrolled to the progress"
    seen.panel.get_by_role("button", name="Stop").click()
    seen.panel.locator(".done").wait_for(timeout=240_000)
    assert "stopped after step" in seen.progress.inner_text()
    assert seen.prompts() == ["a knight walks"]
    seen.window.wait_for_function("document.querySelector('video')?.readyState >= 2", timeout=240_000)
    seen.panel.get_by_text("Figures: what each frame").click()
    seen.panel.locator(".plots svg").nth(1).wait_for(timeout=240_000)
    assert seen.panel.locator(".plots svg").count() == 2
    assert seen.window.evaluate("document.documentElement.scrollWidth <= innerWidth"), "fits a phone"
    seen.window.reload()
    seen.window.wait_for_selector(".timeline .row")
    assert seen.panel.locator(".done").count() == 0 and seen.prompts() == ["a barbarian runs"]


def test_two_users_at_once_and_the_second_sees_its_place(visit) -> None:
    one, two = visit("Motion"), visit("Motion")
    one.panel.get_by_label("Length in seconds").fill("90")
    quick(one, 8)
    one.panel.get_by_role("button", name="Generate").click()
    one.panel.locator(".bar progress[value]").wait_for(timeout=240_000)
    quick(two)
    two.panel.get_by_role("button", name="Generate").click()
    two.window.wait_for_function("/queue/i.test(document.body.innerText)", timeout=240_000)
    two.panel.locator(".done").wait_for(timeout=240_000)
    one.panel.locator(".done").wait_for(timeout=240_000)
    assert "1800 frames" in one.progress.inner_text() and "220 frames" in two.progress.inner_text()


def test_a_mistake_is_one_line_on_the_page(visit) -> None:
    seen = visit("Motion")
    seen.panel.get_by_label("Prompt 2", exact=True).fill("")
    seen.window.wait_for_function("document.body.innerText.includes('has no prompt')")
    seen.panel.get_by_role("button", name="Generate").click()
    toast = seen.window.locator(".toast-body, [data-testid='toast-body']").first
    toast.wait_for(timeout=240_000)
    assert "has no prompt" in toast.inner_text() and "Traceback" not in toast.inner_text()


def test_the_first_view_shows_a_film_and_a_moving_figure(visit) -> None:
    seen = visit("Video")
    seen.window.wait_for_function("document.querySelector('.film video')?.readyState >= 2", timeout=240_000)
    size = seen.window.evaluate("(film => [film.videoWidth, film.clientHeight])(document.querySelector('.film video'))")
    assert size[0] == 64 and size[1] % 64 == 0, "in whole multiples of its size"
    seen.window.get_by_role("tab", name="Motion").click()
    inside = seen.window.frame_locator("iframe:visible")
    inside.locator("#caption").wait_for(timeout=240_000)


def test_a_plan_is_drawn_at_once_and_again(visit) -> None:
    seen = visit("Kernels", width=390)
    seen.panel.locator(".mask img").wait_for(timeout=240_000)
    seen.panel.get_by_role("button", name="Draw the plan").click()
    seen.panel.locator(".mask img").wait_for(timeout=240_000)
    seen.window.wait_for_function("document.body.innerText.includes('kB sent by all ranks')")
    assert "kB sent by all ranks" in seen.panel.inner_text()
    assert seen.window.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("tab", ["Video", "Motion", "Kernels"])
def test_every_control_has_a_label(visit, tab: str) -> None:
    seen = visit(tab)
    nameless = seen.panel.evaluate(
        """panel => [...panel.querySelectorAll('input, select, textarea, button')]
        .filter(node => node.offsetParent !== null && node.type !== 'file')
        .filter(node => !(node.labels?.length || node.ariaLabel || node.title || node.innerText?.trim()
                          || node.getAttribute('aria-labelledby') || node.placeholder))
        .map(node => node.outerHTML.slice(0, 160))"""
    )
    assert nameless == []


def test_a_film_is_asked_and_a_moment_plays(visit) -> None:
    seen = visit("Watch")
    seen.panel.get_by_role("button", name="A mage").click()
    seen.panel.locator("button.moment").first.wait_for(timeout=240_000)
    seen.window.wait_for_function("document.querySelector('#watch-film video')?.readyState >= 2", timeout=240_000)
    seen.panel.locator("button.moment").first.click()
    seen.window.wait_for_function("document.querySelector('#watch-film video').currentTime > 4", timeout=240_000)
