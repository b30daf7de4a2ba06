"""The page as it is served: asked over plain HTTP, and used in a browser."""

import http.client
import importlib.util
import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vse_jax.demo import __main__ as demo
from vse_jax.demo import tabs, uploads

uvicorn = pytest.importorskip("uvicorn", reason="needs Gradio, of the extra [demo]")
pytest.importorskip("gradio", reason="needs Gradio, of the extra [demo]")

SENTENCE = "a red circle"
# Pixels of a side of a scene.
SIDE = 96
WATCHED = {"paths": None}


@pytest.fixture(scope="module")
def tasks():
    """Task -> what does it, once the page is there; whose model is asked the same here."""
    return {}


@pytest.fixture(scope="module")
def port(trained, trained_cam, trained_dvsa, index, tasks):
    """Of the page of three workdirs, served in a thread."""
    kept, served = [], tabs.served

    def kept_tasks(*given):
        tasks.update(served(*given))
        return tasks

    class Server(uvicorn.Server):
        def __init__(self, settings):
            super().__init__(settings)
            kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabs, "WIDTHS", (1,))
        patch.setattr(tabs, "served", kept_tasks)
        patch.setattr(uvicorn, "Server", Server)
        folders = [trained, trained_cam, trained_dvsa]
        given = (folders, index, "exact", "127.0.0.1", 0)
        thread = threading.Thread(target=demo.serve, args=given)
        thread.start()
        while not (kept and kept[0].started):
            assert thread.is_alive()
            time.sleep(0.05)
        yield kept[0].servers[0].sockets[0].getsockname()[1]
        kept[0].should_exit = True
        thread.join()


@pytest.fixture
def ask(port):
    """Method, path, body and headers -> status and content."""

    def asked(method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.putrequest(method, path, skip_host="host" in headers)
        if body is not None:
            headers = {"content-type": "application/json", "content-length": len(body), **headers}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    return asked


@pytest.fixture
def call(ask, port):
    """Name of an element, what happens to it and values -> what its function answers, or tells."""
    config = json.loads(ask("GET", "/config")[1])
    names = {each["props"].get("elem_id"): each["id"] for each in config["components"]}

    def called(name, event, *values):
        target = [names[name], event]
        [number] = [each["id"] for each in config["dependencies"] if target in each["targets"]]
        wanted = {"data": values, "fn_index": number, "session_hash": f"{number}{time.time_ns()}"}
        status, content = ask("POST", "/gradio_api/queue/join", json.dumps(wanted).encode())
        assert status == 200, content
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={wanted['session_hash']}")
        for line in connection.getresponse():
            message = json.loads(line.removeprefix(b"data: ")) if line.strip() else {}
            if message.get("msg") == "process_completed":
                connection.close()
                output = message["output"]
                return output["data"][0] if message["success"] else output["error"] or ""
        raise AssertionError("no answer")

    return called


@pytest.fixture(scope="module")
def screenshot():
    """scripts/screenshot.py."""
    path = Path(__file__).parents[2] / "scripts" / "screenshot.py"
    spec = importlib.util.spec_from_file_location("screenshot", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browsing(screenshot):
    """The script, whose steps are taken; skips without a browser."""
    pytest.importorskip("playwright", reason="needs Playwright (pip install playwright)")
    if screenshot.browser_path() is None:
        pytest.skip(f"needs a browser: one of {', '.join(screenshot.BROWSERS)}")
    return screenshot


@pytest.fixture(scope="module")
def page(browsing, port):
    """The page in a browser; in the end, it has complained of nothing and gone nowhere else."""
    asked, told = [], []
    with browsing.opened(f"http://127.0.0.1:{port}/") as opened:
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        opened.on("pageerror", lambda error: told.append(str(error)))
        opened.on("dialog", lambda dialog: told.append(dialog.message))
        opened.reload()
        opened.wait_for_selector("#header h1")
        yield opened
    strangers = [url for url in asked if not url.startswith((f"http://127.0.0.1:{port}/", "data:"))]
    assert (strangers, [line for line in told if not line.startswith(("log:", "debug:"))]) == (
        [],
        [],
    )


def best(model, photos, sentence):
    """Names of the photos, the most similar to a sentence first."""
    paths = sorted(photos.iterdir())
    scores = model.similarity(model.encode_images(paths), model.encode_texts([sentence]))[:, 0]
    return [paths[number].name for number in np.argsort(-scores)]


def opened_tab(page, name):
    page.get_by_role("tab", name=name).click()


def given(page, place, path):
    """A file in a place for a picture, which takes one once its script has run."""
    page.wait_for_selector(f"#{place} [data-ready]")
    page.set_input_files(f"#{place} input", path)


def told_of(page, problem):
    """Waits for a message on the page that says so, and closes it."""
    found = page.locator(".toast-body").filter(has_text=problem).last
    found.wait_for()
    found.locator("button").click()


def test_a_query_is_typed(page, browsing, photos, tasks):
    browsing.search(page, SENTENCE)
    titles = page.locator("#photos figure").evaluate_all("all => all.map(each => each.title)")
    assert titles == best(tasks["search"].model, photos, SENTENCE)
    widths = page.locator("#photos img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert widths == [SIDE] * len(titles)
    assert page.locator(".heading").first.inner_text().startswith("6 of 6 photos")
    page.fill("#most input[type=number]", "2")
    page.fill("#words textarea", "a star")
    page.click("#find")
    page.wait_for_function("document.querySelectorAll('#photos figure').length == 2")


def test_a_picture_is_uploaded_to_search(page, photos):
    [first, *_] = sorted(photos.iterdir())
    given(page, "search-picture", first)
    figure = page.locator("#photos figure", has_text="1.000").first
    assert figure.get_attribute("title") == first.name
    assert page.locator("#search-picture .place img").evaluate("one => one.naturalWidth") == SIDE
    # The button asks by the photo where no words are written, now for three.
    page.fill("#words textarea", "")
    page.fill("#most input[type=number]", "3")
    page.click("#find")
    page.wait_for_function("document.querySelectorAll('#photos figure').length == 3")
    assert page.locator("#photos figure").first.get_attribute("title") == first.name
    page.click("#search-picture .clear")
    page.wait_for_selector("#photos .hint")


def test_a_picture_is_captioned(page, photos, tasks):
    [*_, last] = sorted(photos.iterdir())
    pixels = np.asarray(Image.open(last).convert("RGB"))
    [wanted] = tasks["caption"].model.caption([pixels], beams=2, n_best=2)
    opened_tab(page, "Caption")
    given(page, "caption-picture", last)
    page.wait_for_selector("#captions td")
    rows = page.locator("#captions tr:has(td)").evaluate_all(
        "all => all.map(row => [...row.cells].map(cell => cell.innerText))"
    )
    assert rows == [
        [str(number), caption.text or "no words", f"{caption.log_probability:.2f}"]
        for number, caption in enumerate(wanted, 1)
    ]
    page.click("#caption-picture .clear")
    page.wait_for_selector("#captions .hint")


def test_a_sentence_is_aligned(page, photos, tasks):
    [first, *_] = sorted(photos.iterdir())
    pixels = np.asarray(Image.open(first).convert("RGB"))
    wanted = tasks["align"].model.align(pixels, SENTENCE)
    opened_tab(page, "Words and regions")
    given(page, "align-picture", first)
    page.wait_for_selector("#align-picture .place.full")
    page.fill("#sentence textarea", SENTENCE)
    page.click("#align")
    page.wait_for_selector("#aligned img.drawn")
    words = page.locator("#aligned .words").all_inner_texts()
    assert words == [segment.text for segment in wanted.segments]
    headings = page.locator("#aligned .heading").all_inner_texts()
    assert [re.sub(r" *[\d.]+ s$", "", heading) for heading in headings] == [
        "Words and their regions", "Where the model looks",
    ]  # fmt: skip
    # What a message repeats of a request is text.
    page.fill("#sentence textarea", "<img src=x onerror=alert(1)>")
    page.click("#align")
    told_of(page, "has no word that the model knows")


def test_bad_uploads_are_told(page, tmp_path):
    opened_tab(page, "Caption")
    place = "caption-picture"
    (tmp_path / "notes.txt").write_text("no picture")
    given(page, place, tmp_path / "notes.txt")
    told = page.locator(f"#{place} .problem")
    told.filter(has_text="“notes.txt” is no picture of a known type: JPEG, PNG").wait_for()
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(uploads.BYTES + 2**20)
    given(page, place, tmp_path / "large.png")
    told.filter(has_text="“large.png” has 11.0 MB; at most 10 MB are taken").wait_for()
    # What is told becomes HTML; a dialog would be noticed.
    named = "<img src=x onerror=alert(1)>.txt"
    (tmp_path / named).write_text("no picture")
    given(page, place, tmp_path / named)
    told.filter(has_text=f"“{named}” is no picture of a known type").wait_for()
    (tmp_path / "text.png").write_text("no picture")
    given(page, place, tmp_path / "text.png")
    told_of(page, "the file is no picture of a known type")
    Image.new("1", (10_000, 6_000)).save(tmp_path / "bomb.png")
    given(page, place, tmp_path / "bomb.png")
    told_of(page, "10,000 x 6,000 pixels; at most 50 million are taken")


def test_a_screenshot(page, browsing, tmp_path):
    opened_tab(page, "Search")
    browsing.shoot(page, SENTENCE, tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as shot:
        assert shot.size == (browsing.WIDTH, browsing.HEIGHT)


def test_scenes_to_search_in(screenshot, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(screenshot, "SCENES", 2)
    screenshot.main([f"--scenes={tmp_path / 'scenes'}"])
    drawn = [path.read_bytes() for path in sorted((tmp_path / "scenes").iterdir())]
    assert drawn == [path.read_bytes() for path in sorted(photos.iterdir())[:2]]


def test_no_path_of_a_request_reaches_the_disk(ask, call, tmp_path):
    """Whatever names the file, in whatever way: Python never opens it."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9)).save(secret)
    if WATCHED["paths"] is None:  # a hook cannot be taken away again
        sys.addaudithook(
            lambda name, values: (
                name in ("open", "os.scandir", "os.listdir")
                and WATCHED["paths"] is not None
                and WATCHED["paths"].append(str(values[0]))
            )
        )
    WATCHED["paths"] = []
    for path in (f"/gradio_api/file={secret}", f"/file={secret}", f"/gradio_api/file{secret}",
                 f"/assets/../../../../../../../../..{secret}", f"/static/{secret}",
                 f"/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{secret}",
                 f"/gradio_api/proxy=file://{secret}", f"/svelte/{secret}"):  # fmt: skip
        assert ask("GET", path)[0] == 404
    assert ask("GET", f"/?deep_link={secret}")[0] == 200
    assert ask("POST", "/gradio_api/upload", b"{}")[0] == 404
    for value in ({"path": str(secret), "meta": {"_type": "gradio.FileData"}},
                  {"path": f"http://127.0.0.1/{secret}", "meta": {"_type": "gradio.FileData"}},
                  [str(secret)]):  # fmt: skip
        body = json.dumps({"data": [value, 3], "fn_index": 1, "session_hash": "x"}).encode()
        status, content = ask("POST", "/gradio_api/queue/join", body)
        assert (status, b"no files" in content) == (400, True)
    for value in (str(secret), f"file://{secret}"):
        assert "not sent as data" in call("search-picture", "change", value, 3)
        assert "not sent as data" in call("caption-picture", "change", value, 1, 1)
        assert "not sent as data" in call("align", "click", value, "a red circle")
    opened, WATCHED["paths"] = WATCHED["paths"], None
    assert [path for path in opened if "secret" in path] == []


def test_values_that_the_page_would_not_send(call, as_data):
    picture = as_data(Image.new("RGB", (20, 20), "red"))
    assert "at most 500" in call("words", "submit", "x" * 501, 3)
    assert "write a sentence first" in call("words", "submit", " ", 3)
    assert "a whole number from 1 to 48" in call("words", "submit", SENTENCE, 1.5)
    for count in (0, 49, "3", None):  # of which Gradio refuses some itself
        assert "<figure" not in call("words", "submit", SENTENCE, count)
    for width, count in ((5000, 1), (1, 5000), (None, 1)):
        assert "<table" not in call("write", "click", picture, width, count)
    # And then it answers as before.
    assert call("find", "click", SENTENCE, None, 3).count("<figure") == 3


def test_a_picture_of_one_pixel(call, as_data):
    picture = as_data(Image.new("RGB", (1, 1), "red"))
    assert call("search-picture", "change", picture, 2).count("<figure") == 2
    assert "<table" in call("write", "click", picture, 1, 1)
    assert "img class=" in call("align", "click", picture, SENTENCE)


def test_strangers(ask):
    assert ask("GET", "/", host="example.org")[0] == 403
    assert ask("POST", "/gradio_api/queue/join", b"{}", origin="http://example.org")[0] == 403
    assert ask("POST", "/gradio_api/queue/join", b"x" * 20_000_000)[0] == 413


def test_a_failure_of_ours_is_logged_and_told(call, monkeypatch, caplog):
    def failed(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(tabs, "by_words", failed)
    assert "failed on the server, whose log says why" in call("words", "submit", SENTENCE, 3)
    assert "a bug" in caplog.text
