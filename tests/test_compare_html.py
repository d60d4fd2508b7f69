"""The page of compare.py in a real browser: sorting, filtering, hover, pictures, no error and no request."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.compare import main
from experiments.comparing.pictures import side_by_side
from experiments.comparing.tables import compare
from experiments.run_files.read_run import find_runs, read_run
from tests.fake_runs import write_grid, write_pictures, write_run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
browser_test = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_grid(tmp_path_factory.mktemp("html") / "<i>runs")
    assert main([str(folder), "--html", str(folder.parent / "page.html")]) == 0
    return folder


@pytest.fixture(scope="module")
def page(grid: Path) -> Iterator[Any]:
    """The page, opened from disk; every message, error and request is noted in `page.noted`."""
    sync_api = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[test]"')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.noted = []
        page.on("console", lambda message: page.noted.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.noted.append(f"error: {error}"))
        page.on("request", lambda request: page.noted.append(f"request: {request.url[:100]}"))
        page.goto((grid.parent / "page.html").as_uri())
        yield page
        browser.close()


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does on the page: nothing but the page itself is loaded, and nothing is complained of."""
    yield
    if "page" in request.fixturenames:
        noted = [one for one in request.getfixturevalue("page").noted if not one.startswith("request: data:")]
        assert len(noted) == 1
        assert re.fullmatch(r"request: file:///.*/page\.html", noted[0])


def labels(page: Any, section: int = 0) -> list[str]:
    return page.locator(".protocol").nth(section).locator(".groups tbody td.text").all_inner_texts()


def column(page: Any, number: int) -> list[str]:
    return page.locator(".protocol").first.locator(f".groups tbody td:nth-child({number})").all_inner_texts()


@browser_test
def test_everything_is_there(page: Any) -> None:
    assert page.inner_text("#summary").startswith("19 finished runs in 7 groups · 1 unfinished · 1 broken · 1 foreign")
    assert "2 tables, each ranked by itself" in page.inner_text("#warning")
    assert labels(page)[0] == "vgg16 · unet"
    assert labels(page, 1) == ["resnet18 · unet"]
    assert page.locator(".protocol .chips .differs").all_inner_texts() == ["size\n24 x 32", "size\n12 x 16"]
    others = page.inner_text("#others")
    assert "results.json is no JSON, or half of it" in others
    assert "<i>runs/thesis" in others
    assert page.locator("#others i").count() == 0  # a folder's name is text
    assert page.locator(".js-plotly-plot").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    table = page.locator(".groups").first
    assert table.evaluate("table => table.scrollWidth <= table.parentElement.clientWidth")


@browser_test
def test_a_click_sorts_and_another_turns_it_round(page: Any) -> None:
    before = labels(page)
    head = page.locator(".groups").first.locator("th", has_text="params")
    head.click()
    cheap = [float(text.split()[0]) for text in column(page, 8)]
    assert cheap == sorted(cheap)
    assert head.get_attribute("aria-sort") == "ascending"
    head.click()
    assert [float(text.split()[0]) for text in column(page, 8)] == cheap[::-1]
    page.locator(".groups").first.locator("th", has_text="group").click()
    assert labels(page) == sorted(before)
    page.locator(".groups").first.locator("th", has_text="miou").click()
    assert labels(page) == before


@browser_test
def test_a_filter_goes_for_the_table_the_plots_and_the_pictures(page: Any) -> None:
    section = page.locator(".protocol").first
    points = "document.querySelector('.front').data[1].x.length"
    assert page.evaluate(points) == 6
    section.locator(".filter").fill("resnet -unet")
    assert sorted(labels(page)) == ["resnet18 · fcn8s", "resnet50 · fcn8s"]
    assert section.locator(".count").inner_text() == "2 of 6 groups"
    assert page.evaluate(points) == 2
    assert page.evaluate("document.querySelector('.heat').data[0].y.length") == 2
    assert section.locator(".pictures th").count() == 4
    section.locator(".filter").fill("vgg16-unet-1")  # the name of a run
    assert labels(page) == ["vgg16 · unet"]
    section.locator(".filter").fill("")
    assert len(labels(page)) == 6


@browser_test
def test_rows_are_drawn_as_picked(page: Any) -> None:
    section = page.locator(".protocol").first
    names = "document.querySelector('.curves').data.map(trace => trace.name).filter(Boolean)"
    section.locator("[data-pick=none]").click()
    assert page.evaluate(names) == []
    section.get_by_label("draw vgg16 · unet").check()
    assert page.evaluate(names) == ["vgg16 · unet"]
    section.locator("[data-pick=all]").click()
    assert len(page.evaluate(names)) == 6
    section.locator(".column").select_option("train/loss_epoch")
    assert page.evaluate("document.querySelector('.curves').data.at(-1).y[0] > 1")
    section.locator(".column").select_option("val/miou")


@browser_test
def test_points_say_what_they_are(page: Any) -> None:
    plot = page.locator(".front").first
    plot.scroll_into_view_if_needed()
    place = page.evaluate(
        """() => {
            const plot = document.querySelector('.front'), [, points] = plot.data;
            const { xaxis, yaxis, _size: edge } = plot._fullLayout, box = plot.getBoundingClientRect();
            const at = points.customdata.findIndex(one => one[2] === 'resnet50 · fcn8s');
            return [box.x + edge.l + xaxis.d2p(points.x[at]), box.y + edge.t + yaxis.d2p(points.y[at])];
        }"""
    )
    page.mouse.move(place[0] - 3, place[1])
    page.mouse.move(*place)
    hover = plot.locator(".hoverlayer .hovertext")
    hover.first.wait_for()
    text = hover.first.text_content()
    assert "resnet50 · fcn8s" in text
    assert "GMACs 2.000" in text
    assert "miou 0.5" in text
    cell = page.locator(".heat").first.locator(".nsewdrag")
    cell.hover()
    text = page.locator(".heat").first.locator(".hovertext").first.text_content()
    assert "<b>tree</b>: IoU 0." in text  # the class in the middle, whose name is no markup
    assert "to the baseline \u22120." in text


@browser_test
def test_pictures_stand_side_by_side(page: Any) -> None:
    section = page.locator(".protocol").first
    heads = section.locator(".pictures th").all_inner_texts()
    assert heads[:3] == ["image", "truth", "vgg16 · unet\nseed 0"]
    images = section.locator(".pictures img")
    assert images.count() == 2 * 8
    assert page.evaluate(
        "[...document.querySelectorAll('.pictures img')].every(image => image.complete && image.naturalWidth === 32)"
    )
    assert section.locator(".legend span").all_inner_texts() == ["background", "road", "<b>tree</b>", "car", "person"]


@browser_test
def test_the_page_forbids_itself_requests(page: Any) -> None:
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'went', () => 'refused')") == "refused"
    assert any("Content Security Policy" in one for one in page.noted)
    page.noted[:] = [one for one in page.noted if "127.0.0.1" not in one]


def test_one_run_of_a_group_is_shown_on_images_that_are_the_same(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 0)):
        write_run(tmp_path / name, "resnet18", "unet", seed, 0.5)
    write_run(tmp_path / "c", "resnet18", "fcn8s", 0, 0.4)
    other = write_run(tmp_path / "d", "vgg16", "fcn8s", 0, 0.3)
    (other / "predictions" / "00005-image.png").write_bytes((other / "predictions" / "00000-image.png").read_bytes())
    (other / "predictions" / "00000-prediction.png").unlink()
    (table,) = compare(find_runs([str(tmp_path)]), "val").tables
    groups = [row.group for row in table.rows]
    pictures = side_by_side(groups)
    assert [one["index"] for one in pictures["images"]] == [0, 5, 5]
    assert pictures["groups"]["resnet18 · unet"]["name"] == "b"
    keys = {label: set(one["predictions"]) for label, one in pictures["groups"].items()}
    assert keys["resnet18 · unet"] == keys["resnet18 · fcn8s"]
    assert len(keys["vgg16 · fcn8s"] - keys["resnet18 · unet"]) == len(keys["vgg16 · fcn8s"]) == 1
    assert side_by_side(groups, budget=1)["left_out"] == 2


SECRET = "machine example.org password hunter2"


@pytest.mark.parametrize("how", ["absolute", "above", "link", "text named .png", "another picture's folder"])
def test_only_pictures_of_the_run_get_into_a_page(how: str, tmp_path: Path) -> None:
    """Whatever predictions/index.json of a run from elsewhere names."""
    folder = write_run(tmp_path / "runs" / "a", "resnet18", "unet", 0, 0.5)
    secret = tmp_path / "secret.png"
    secret.write_text(SECRET)
    index = folder / "predictions" / "index.json"
    name = {
        "absolute": str(secret),
        "above": "../../../secret.png",
        "link": "link.png",
        "text named .png": "text.png",
        "another picture's folder": "../other/00000-image.png",
    }[how]
    (folder / "predictions" / "link.png").symlink_to(secret)
    (folder / "predictions" / "text.png").write_text(SECRET)
    write_pictures(folder / "other", 3)
    there = json.loads(index.read_text())
    there["samples"][0]["prediction"] = name
    index.write_text(json.dumps(there))
    run = read_run(folder)
    if how == "text named .png":  # in its place, but no picture: left out when the page is made
        assert run.state == "finished"
    else:
        assert run.state == "broken"
        assert run.reason == f"predictions/index.json names {name}, which is no PNG file in its folder"
    assert main([str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")]) == 0
    assert base64.b64encode(SECRET.encode()).decode()[:20] not in (tmp_path / "page.html").read_text()


def test_a_colour_is_a_colour(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "resnet18", "unet", 0, 0.5)
    index = folder / "predictions" / "index.json"
    index.write_text(index.read_text().replace('"#000000"', '"red; background: url(http://a)"'))
    assert read_run(folder).reason == "predictions/index.json has a colour that is not #rrggbb"


def test_names_may_be_those_of_the_parts_of_the_page(tmp_path: Path) -> None:
    names = ("/* plotly */", "/* data */", "/* page.js */")
    write_run(tmp_path / "runs" / "a", "resnet18", "unet", 0, 0.5, classes=names)
    assert main([str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = text.split('type="application/json">', 1)[1].split("</script>", 1)[0]
    assert json.loads(data)["tables"][0]["classes"] == list(names)


def test_no_data_can_end_their_element(grid: Path) -> None:
    text = (grid.parent / "page.html").read_text(encoding="utf-8")
    data = text.split('type="application/json">', 1)[1].split("</script>", 1)[0]
    assert "<" not in data
    assert "u003ci>runs" in data
    assert "/* plotly */" not in text
