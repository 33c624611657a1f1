"""The exported student in a browser: it answers as onnxruntime does, asks nobody for anything, refuses what is no film.

Debian's chromium and npm's registry are needed; without one of them these tests are skipped, and say so.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import owners
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from test_browser import BROWSER, ROOT
from test_device import BIASES, OPSET, OUTPUTS, SIZE, STRIDE, TEMPERATURES, film
from test_device import net as net
from torch import nn

from stages import export
from stages.core import files
from stages.demo import building
from stages.demo.__main__ import server
from stages.device import graphs, running, variants

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium, or name one by CHROMIUM=<path>")
UNKNOWN = "\N{EN DASH}"
NAMES = ["index.html", "one_file.html"]


@pytest.fixture(scope="module")
def model(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `export` writes it, with what the page reads, of an untrained student."""
    folder = tmp_path_factory.mktemp("exported")
    calibration = graphs.Calibration(TEMPERATURES, BIASES)
    explaining = graphs.Explanation(net, SIZE, calibration, STRIDE, "layer_cam")
    small = variants.int8_weights(graphs.to_onnx(explaining, OPSET))
    export.write(small, folder / "student_map_int8_weights.onnx")
    (folder / "samples").mkdir()
    for number, side in enumerate((SIZE, 200)):
        cv2.imwrite(str(folder / f"samples/sample_{number}.png"), film(number, side, side + 40))
    names = [f"Finding_{place}" for place in range(OUTPUTS)]
    chosen = [
        {
            "name": name,
            "threshold": [0.0, None, 0.1, 0.2, None],
            "temperature": [None if np.isnan(value) else value for value in row],
            "bias": [0.0] * OUTPUTS,
        }
        for name, row in zip(("here", "there"), TEMPERATURES.tolist(), strict=True)
    ]
    about = {
        "format": running.FORMAT,
        "use": "research only",
        "architecture": "eeea_net_c2",
        "size_px": SIZE,
        "ingest": {"max_pixels": 1_000_000, "min_range": 0.125},
        "findings": [{"name": name, "title": name.replace("_", " ")} for name in names],
        "populations": chosen,
        "map": {"explainer": "layer_cam", "files": ["student_map_int8_weights.onnx"]},
        "samples": "patterns",
        "files": export.hashes(folder),
    }
    files.write_json(about, folder / running.MODEL)
    return folder


@pytest.fixture(scope="module")
def pages(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    try:
        building.build(model, folder, ROOT / building.CACHE)
    except building.DemoError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def address(pages: Path) -> Iterator[str]:
    """Of a static server on loopback."""
    with server(pages, 0) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


def opened(browser: Browser, url: str, width: int = 1280, **options: bool) -> tuple[Page, list[str]]:
    """A page that is ready, and what it said on the console and asked for."""
    page, said = browser.new_page(viewport={"width": width, "height": 900}, **options), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("blob:") else None)
    page.goto(url)
    page.locator("#said", has_text="Ready").wait_for(timeout=30_000)
    return page, said


def saved(page: Page) -> dict[str, Any]:
    """What the page gives as JSON."""
    with page.expect_download() as download:
        page.click("#save")
    found: dict[str, Any] = json.loads(download.value.path().read_text())
    return found


def shown(page: Page, path: Path) -> str:
    """What the page says of a picture that it is given."""
    page.set_input_files("#file", path)
    page.locator("#said", has_text="answered").wait_for()
    return page.inner_text("#said")


def as_page(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values.ravel()]


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_answered_as_onnxruntime_does(
    browser: Browser, model: Path, pages: Path, address: str, name: str
) -> None:
    page, said = opened(browser, address + name if name == "index.html" else (pages / name).as_uri())
    session = running.Session((model / "student_map_int8_weights.onnx").read_bytes(), 1)
    for number in range(2):
        page.locator(f"[data-sample='sample_{number}.png']").click()
        page.locator("#said", has_text=f"sample_{number}.png: ").wait_for()
        found = saved(page)
        image = cv2.imread(str(model / f"samples/sample_{number}.png"), cv2.IMREAD_GRAYSCALE)
        logits, probabilities, made = session.explain(image, found["findings"].index(found["finding"]))
        assert found["logits"]["data"] == pytest.approx(logits.tolist(), abs=1e-3)
        assert found["probabilities"]["data"] == pytest.approx(as_page(probabilities), abs=1e-3)
        assert found["map"]["dims"] == list(made.shape)
        assert np.abs(np.reshape(found["map"]["data"], made.shape) - made).max() < 1e-2 * np.abs(made).max()
        rows = page.locator("#rows tr")
        assert rows.count() == OUTPUTS
        assert ("called" in rows.nth(0).inner_text()) == (logits[0] >= 0)
        assert rows.nth(4).locator("td").nth(0).inner_text() == UNKNOWN
    if name == "index.html":
        assert all(one.startswith(address) for one in said), said
    else:
        assert said == [page.url], "asked the network for something"
    page.close()


def test_the_page_fits_a_phone_and_has_no_fault(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address, 390, bypass_csp=True)  # axe is put into the page
    page.click("[data-sample='sample_1.png']")
    page.locator("#answer").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    found = Axe().run(page, options={"resultTypes": ["violations", "passes"]}).response
    assert len(found["passes"]) > 10, "axe-core did look"
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found["violations"]] == []
    page.close()


def test_a_finding_that_is_chosen_shows_its_map(browser: Browser, address: str) -> None:
    page, _ = opened(browser, address)
    page.click("[data-sample='sample_0.png']")
    page.locator("#answer").wait_for()
    page.locator("#rows button").nth(3).click()
    page.locator("#mapped", has_text="Finding 3").wait_for()
    assert saved(page)["finding"] == "Finding_3"
    page.select_option("#population", "1")
    assert page.locator("#rows tr").nth(4).locator("td").nth(0).inner_text() != UNKNOWN
    page.close()


def test_what_is_no_film_is_refused_with_the_reason(browser: Browser, address: str, tmp_path: Path) -> None:
    page, _ = opened(browser, address)
    picture = film(0, 200, 200)
    colour = np.dstack([picture, picture.T, picture[::-1]])
    words = np.full((300, 300), 255, np.uint8)
    words[::9, ::3] = 0
    cases = {
        "photo.png": (owners.png(colour), "in colour"),
        "page.png": (owners.png(words), "mostly white"),
        "blank.png": (owners.png(np.full((90, 90), 7, np.uint8)), "hardly any contrast"),
        "dot.png": (owners.png(np.zeros((1, 1), np.uint8)), "the model needs 64"),
        "long.png": (owners.png(np.tile(picture, (1, 5))), "no film is that long"),
        "big.png": (owners.png(np.tile(picture, (6, 6))), "more pixels"),
        "deep.png": (owners.png_of_words(picture.astype(np.uint16) * 16), "16 bits"),
        "cut.png": (owners.png(picture)[:200], "damaged or cut short"),
        "empty.png": (b"", "neither PNG nor JPEG"),
        "scan.dcm": (owners.dicom(picture), "cxr-predict reads DICOM"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert reason in shown(page, tmp_path / name), name
        assert not page.locator("#answer").is_visible()
    cases["clear.png"] = (owners.png(np.dstack([picture, picture, picture, picture // 2])), "partly transparent")
    (tmp_path / "clear.png").write_bytes(cases["clear.png"][0])
    assert cases["clear.png"][1] in shown(page, tmp_path / "clear.png")
    (tmp_path / "Röntgen.jpg").write_bytes(owners.jpeg(picture))
    assert "Röntgen.jpg: 200 x 200" in shown(page, tmp_path / "Röntgen.jpg")
    page.close()


def test_the_film_that_was_taken_last_is_shown(browser: Browser, address: str, tmp_path: Path) -> None:
    page, _ = opened(browser, address)
    (tmp_path / "slow.png").write_bytes(owners.png(film(0, 990, 990)))
    (tmp_path / "bad.png").write_bytes(owners.png(np.full((990, 990), 7, np.uint8)))
    for late in ("slow.png", "bad.png"):
        page.set_input_files("#file", tmp_path / late)
        page.click("[data-sample='sample_0.png']")
        page.locator("#said", has_text="sample_0.png: ").wait_for()
        page.wait_for_timeout(1500)
        assert page.inner_text("#said").startswith("sample_0.png: ")
        assert saved(page)["film"] == "sample_0.png"
    page.close()


def test_a_changed_file_is_not_run(browser: Browser, pages: Path) -> None:
    path = pages / "student_map_int8_weights.onnx"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with server(pages, 0) as serving:
            threading.Thread(target=serving.serve_forever, daemon=True).start()
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{serving.server_port}/")
            page.locator("#said", has_text="Not loaded").wait_for(timeout=30_000)
            serving.shutdown()
        assert page.locator("#file").is_disabled()
    finally:
        path.write_bytes(content)


def test_one_file_is_small_enough_to_mail(pages: Path) -> None:
    assert (pages / "one_file.html").stat().st_size < 15_000_000


def test_a_registry_that_is_not_there_is_told_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(building.DemoError, match=r"npm_config_registry .*npm pack onnxruntime-web"):
        building.runtime(tmp_path)


def test_a_runtime_of_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    (tmp_path / f"{building.RUNTIME}-{building.VERSION}.tgz").write_bytes(b"other")
    with pytest.raises(building.DemoError):
        building.runtime(tmp_path)


def test_without_npm_and_its_variable_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("npm_config_registry", raising=False)
    monkeypatch.setattr(building.shutil, "which", lambda _: None)
    with pytest.raises(building.DemoError, match="install npm, or set npm_config_registry"):
        building.runtime(tmp_path)
