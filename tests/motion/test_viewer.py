"""The page holds the motion it was given, needs no network, and answers keys in a browser."""

import re

import numpy as np
import pytest
from longtake.errors import UserError
from longtake.motion.export.viewer import unpack, write_viewer
from longtake.motion.kinematics import HUMANML
from longtake.timeline import Timeline
from motion_models import Golden

CAPTIONS = ["walks"] * 20 + ['says "<b>hi</b>" </script>\u2028& wäves'] * 20


def walk(frames: int = 40) -> np.ndarray:
    joints = Golden("M7_synth_a").arrays["joints"].astype(np.float64)
    return np.concatenate([joints] * -(-frames // len(joints)))[:frames]


def test_e2_frames_and_captions_are_the_timelines(tmp_path) -> None:
    timeline = Timeline.parse("0: a person walks | 25: waves | 33: runs")
    segments = timeline.segments(40)
    captions = [text for start, stop, text in segments for _ in range(stop - start)]
    people = [walk(), walk() + [1.0, 0.0, 0.5]]
    write_viewer(tmp_path / "a.html", people, HUMANML, 20, captions=captions)
    data = unpack((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert data["frames"] == 40 and data["fps"] == 20
    assert data["captions"] == [[start, text] for start, _, text in segments]
    for got, want in zip(data["people"], people, strict=True):
        assert np.abs(got - want).max() <= 1.1e-4


def test_e2_the_page_asks_nobody_for_anything(tmp_path) -> None:
    write_viewer(tmp_path / "a.html", [walk()], HUMANML, 20, captions=CAPTIONS)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    code = re.sub(r'(<script type="application/json" id="data">).*?</script>', "", page, flags=re.DOTALL)
    assert "fetch" not in code and not re.search(r"https?:|//[a-z]|src=|href=|@import|url\(", code, re.IGNORECASE)
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert page.count("</script>") == 2, "a caption cannot end the script"
    assert unpack(page)["captions"][1][1] == CAPTIONS[20]


def test_ten_minutes_stay_small(tmp_path) -> None:
    write_viewer(tmp_path / "a.html", [walk(12000)], HUMANML, 20, captions=["walks"] * 12000)
    assert (tmp_path / "a.html").stat().st_size < 3_000_000


def test_what_cannot_be_shown_is_refused(tmp_path) -> None:
    for joints in (walk()[:0], walk()[:, :21], walk() * np.nan):
        with pytest.raises(UserError):
            write_viewer(tmp_path / "a.html", [joints], HUMANML, 20)
    assert not list(tmp_path.iterdir())


@pytest.mark.browser
def test_e2_the_page_plays_in_a_browser(tmp_path, browser) -> None:
    write_viewer(tmp_path / "a.html", [walk(), walk() + [1.0, 0.0, 0.0]], HUMANML, 20, captions=CAPTIONS)
    page = browser.new_page(viewport={"width": 800, "height": 500}, reduced_motion="reduce")
    page.set_default_timeout(240_000)
    trouble, asked = [], []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "a.html").as_uri())
    assert page.get_attribute("#scrub", "max") == "39"

    def shown() -> str:
        page.wait_for_timeout(150)
        return page.inner_text("#clock").split("·")[1].strip()

    assert shown() == "1 / 40" and page.inner_text("#caption") == "walks"
    page.keyboard.press("ArrowRight")
    assert shown() == "2 / 40"
    page.keyboard.press("Shift+ArrowRight")
    assert shown() == "22 / 40" and page.text_content("#caption") == CAPTIONS[20]
    page.keyboard.press("End")
    assert shown() == "40 / 40"
    page.keyboard.press("Home")
    before = page.evaluate("canvas.toDataURL()")
    page.keyboard.press(" ")
    page.wait_for_timeout(500)
    page.keyboard.press(" ")
    assert shown() != "1 / 40" and page.evaluate("canvas.toDataURL()") != before
    page.keyboard.press("Home")
    shown()
    seen = page.evaluate("new Set(pen.getImageData(0, 0, canvas.width, canvas.height).data).size")
    assert seen > 20, "something is drawn"
    page.mouse.move(400, 200)
    page.mouse.down()
    page.mouse.move(500, 230)
    page.mouse.up()
    page.mouse.wheel(0, 300)
    shown()
    assert page.evaluate("canvas.toDataURL()") != before
    page.close()
    assert not trouble and len(asked) == 1
