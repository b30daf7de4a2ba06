"""The page: tabs of Gradio around what `tabs` does. Needs the extra [demo]."""

import asyncio
import html
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import gradio
from fastapi import FastAPI

from vse_jax.demo import cards, tabs, uploads
from vse_jax.demo.gate import Gate, files_below
from vse_jax.demo.tabs import Served, Unserved
from vse_jax.errors import USER_ERRORS

log = logging.getLogger(__name__)
Tasks = Mapping[str, Served | Unserved]

STATIC = Path(__file__).parent / "static"
# Requests that wait at most, and browsers whose last inputs are kept.
WAITING, SESSIONS = 32, 32
# Of a request: a picture in base64, and what is around it.
MOST = uploads.BYTES * 4 // 3 + 2**16
TITLE = "vse_jax"
# Fonts that machines have.
FONTS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")


def application(tasks: Tasks, worker: Executor, local: bool) -> Gate:
    """The page as an ASGI application.

    Args:
      tasks: as `tabs.served` tells.
      worker: of one thread, the one in which the models were loaded: they compute one at a time.
      local: whether only this machine is served.
    """

    async def made() -> Gate:
        return _application(tasks, worker, local)

    # Where no event loop runs, Gradio leaves one of its own open for each of its locks.
    return asyncio.run(made())


def _application(tasks: Tasks, worker: Executor, local: bool) -> Gate:
    blocks = built(tasks, worker)
    queue: Any = blocks.queue(max_size=WAITING, default_concurrency_limit=1)._queue
    # After each request it would sum up all before it, for a page that is closed.
    queue.compute_analytics_summary = lambda _: None
    blocks.state_session_capacity = SESSIONS
    served = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css=(STATIC / "page.css").read_text(encoding="utf-8"),
        head='<link rel="icon" href="data:,">',
    )
    code = Path(gradio.__file__).parent / "templates" / "frontend"
    files = files_below(code / "assets", "/assets/") | files_below(code / "static", "/static/")
    return Gate(served, files, MOST, local)


def built(tasks: Tasks, worker: Executor) -> gradio.Blocks:
    """The tabs; a task that nothing does says why in its place."""
    with gradio.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        gradio.HTML(_header(tasks), elem_id="header", js_on_load=None)
        with gradio.Tabs():
            with gradio.Tab("Search", id="search"):
                _search(tasks["search"], worker)
            with gradio.Tab("Caption", id="caption"):
                _caption(tasks["caption"], worker)
            with gradio.Tab("Words and regions", id="align"):
                _align(tasks["align"], tasks["look"], worker)
    return blocks


def _search(task: Served | Unserved, worker: Executor) -> None:
    if isinstance(task, Unserved) or task.finder is None:
        _why("No photos can be searched.", task)
        return
    finder = task.finder
    with gradio.Row():
        with gradio.Column(scale=1, min_width=280):
            words = gradio.Textbox(
                label="What is on the photo?",
                placeholder="two dogs playing in snow",
                max_length=uploads.CHARACTERS,
                elem_id="words",
            )
            find = gradio.Button("Search", variant="primary", elem_id="find")
            picture = _picture("Or search by a photo", "search-picture")
            most = gradio.Slider(
                1, tabs.MOST, value=12, step=1, label="Photos shown", elem_id="most"
            )
        with gradio.Column(scale=3, min_width=360):
            found = _output(hint := "Photos that fit best come first.", "photos")

    def by_words(text: Any, k: Any) -> str:
        sentence, count = uploads.sentence(text), uploads.count(k, tabs.MOST)
        return cards.gallery(tabs.by_words(finder, sentence, count))

    def by_picture(data: Any, k: Any) -> str:
        if not data:
            return cards.hint(hint)
        pixels, count = uploads.picture(data), uploads.count(k, tabs.MOST)
        return cards.gallery(tabs.by_picture(finder, pixels, count))

    def by_either(text: Any, data: Any, k: Any) -> str:
        return by_picture(data, k) if data and not str(text or "").strip() else by_words(text, k)

    _on([words.submit], by_words, [words, most], found, worker)
    _on([find.click], by_either, [words, picture, most], found, worker)
    _on([picture.change], by_picture, [picture, most], found, worker, "always_last")


def _caption(task: Served | Unserved, worker: Executor) -> None:
    if isinstance(task, Unserved):
        _why("No captions can be written.", task)
        return
    model = task.model
    widths = tabs.widths(model)
    with gradio.Row():
        with gradio.Column(scale=1, min_width=280):
            picture = _picture("A photo to caption", "caption-picture")
            beams = gradio.Radio(
                widths,
                value=model.config.evaluate.beams,
                label="Beam width",
                info="captions kept by the search; 1 is greedy",
                elem_id="beams",
            )
            n_best = gradio.Slider(
                1,
                max(widths),
                value=min(5, max(widths)),
                step=1,
                label="Captions shown",
                elem_id="n-best",
            )
            write = gradio.Button("Caption", variant="primary", elem_id="write")
        with gradio.Column(scale=3, min_width=360):
            found = _output(hint := "The likeliest captions come first.", "captions")

    def written(data: Any, width: Any, count: Any) -> str:
        if width not in widths:
            raise uploads.UploadError(f"the beam width must be one of {widths}")
        pixels, begun = uploads.picture(data), time.perf_counter()
        best = tabs.captions(model, pixels, int(width), uploads.count(count, max(widths)))
        return cards.captions(best, time.perf_counter() - begun)

    def changed(data: Any, width: Any, count: Any) -> str:
        return written(data, width, count) if data else cards.hint(hint)

    _on([picture.change], changed, [picture, beams, n_best], found, worker, "always_last")
    _on([write.click], written, [picture, beams, n_best], found, worker)


def _align(aligns: Served | Unserved, looks: Served | Unserved, worker: Executor) -> None:
    tied, mapped = isinstance(aligns, Served), isinstance(looks, Served)
    if not tied and not mapped:
        _why("No words can be tied to regions.", aligns)
        _why("There are no maps of where a model looks.", looks)
        return
    with gradio.Row():
        with gradio.Column(scale=1, min_width=280):
            picture = _picture("A photo", "align-picture")
            words = gradio.Textbox(
                label="What is said of it",
                info="" if tied else "without, the model's own caption",
                placeholder="a dog on grass",
                max_length=uploads.CHARACTERS,
                elem_id="sentence",
            )
            go = gradio.Button("Show", variant="primary", elem_id="align")
        with gradio.Column(scale=3, min_width=360):
            found = _output("Words and their regions have the same colours.", "aligned")

    def shown(data: Any, text: Any) -> str:
        sentence = uploads.sentence(text, may_be_empty=not tied)
        pixels, parts = uploads.picture(data), []
        for task, do, card in (
            (aligns, tabs.align, cards.aligned), (looks, tabs.look, cards.looked),
        ):  # fmt: skip
            if isinstance(task, Served):
                begun = time.perf_counter()
                drawn = do(task.model, pixels, sentence)
                parts.append(card(drawn, time.perf_counter() - begun))
        return "".join(parts)

    _on([words.submit, go.click], shown, [picture, words], found, worker)
    for title, task in (
        ("No words can be tied to regions.", aligns),
        ("There are no maps of where a model looks.", looks),
    ):
        if isinstance(task, Unserved):
            _why(title, task)


def _on(
    events: list[Any],
    function: Callable[..., str],
    inputs: list[Any],
    output: gradio.HTML,
    worker: Executor,
    pending: Literal["once", "always_last"] = "once",
) -> None:
    """Has a function done in the worker's thread; its errors are told in one line.

    What happens while it is done is dropped, or of "always_last" the last is done behind it.
    """

    def told(*values: Any) -> str:
        try:
            return worker.submit(function, *values).result()
        except (*USER_ERRORS, ValueError, OSError) as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise _error(line) from None
        except Exception:
            log.exception("a request failed")
            raise _error("it failed on the server, whose log says why") from None

    gradio.on(
        events,
        told,
        inputs,
        output,
        api_visibility="private",
        concurrency_limit=1,
        concurrency_id="model",
        show_progress="minimal",
        trigger_mode=pending,
    )


def _error(line: str) -> gradio.Error:
    # Gradio shows it as HTML.
    return gradio.Error(html.escape(line), duration=12, title="Sorry", print_exception=False)


def _picture(prompt: str, name: str) -> gradio.HTML:
    """A place for a picture; its value is a data URL, or empty."""
    return gradio.HTML(
        "",
        html_template=(STATIC / "picture.html").read_text(encoding="utf-8"),
        js_on_load=(STATIC / "picture.js").read_text(encoding="utf-8"),
        elem_id=name,
        prompt=prompt,
        types=",".join(uploads.FORMATS.values()),
        known=", ".join(uploads.FORMATS).replace("WEBP", "WebP"),
        most=uploads.BYTES,
        told="",
    )


def _output(hint: str, name: str) -> gradio.HTML:
    return gradio.HTML(cards.hint(hint), elem_id=name, js_on_load=None, apply_default_css=False)


def _why(title: str, task: Served | Unserved) -> None:
    if isinstance(task, Unserved):
        gradio.HTML(cards.unserved(title, task), js_on_load=None, apply_default_css=False)


def _header(tasks: Tasks) -> str:
    told: dict[str, list[str]] = {}
    for task, outcome in tasks.items():
        if isinstance(outcome, Served):
            told.setdefault(outcome.folder.name, []).append(task)
    chips = "".join(
        f"<li><b>{html.escape(name)}</b> {', '.join(does)}</li>" for name, does in told.items()
    )
    return f"<h1>{TITLE}</h1><p>Photos and sentences in one space.</p><ul>{chips}</ul>"


def _theme() -> gradio.Theme:
    return gradio.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO, radius_size="lg"
    )
