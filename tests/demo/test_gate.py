"""What is let through to the page: an ASGI application that answers all stands behind the gate."""

import asyncio
import json

import pytest

from vse_jax.demo.gate import Gate, files_below

JOIN = "/gradio_api/queue/join"


class Page:
    """Answers 200 and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    async def __call__(self, scope, receive, send):
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        self.asked.append((scope["method"], scope["path"], scope["query_string"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"page"})


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def ask(page):
    """Method, path, body in parts, headers -> status and headers."""

    def asked(method, path, *parts, local=True, query=b"", **headers):
        gate = Gate(page, {"/assets/index.js"}, most=100, local=local)
        headers = {"host": "127.0.0.1:7860", **headers}
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query,
            "headers": [(name.replace("_", "-").encode(), value.encode())
                        for name, value in headers.items()],
        }  # fmt: skip
        waiting, sent = list(parts), []

        async def receive():
            if not parts or not waiting:
                return {"type": "http.disconnect"}
            part = waiting.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}

        async def send(message):
            sent.append(message)

        asyncio.run(gate(scope, receive, send))
        return sent[0]["status"], dict(sent[0]["headers"])

    return asked


def call(*data, **others):
    return json.dumps({"data": list(data), "fn_index": 0, "session_hash": "x", **others}).encode()


def test_what_the_page_asks_for(ask, page):
    for path in ("/", "/config", "/theme.css", "/assets/index.js", "/gradio_api/queue/data",
                 "/gradio_api/heartbeat/abc1"):  # fmt: skip
        assert ask("GET", path)[0] == 200
    body = call("a dog", 3, 0.5, True, None, event_data=None)
    # In any number of parts, it arrives as it was sent.
    assert ask("POST", JOIN, body[:20], body[20:], b"")[0] == 200
    assert page.asked[-1] == ("POST", JOIN, b"", body)


def test_the_browser_is_told_to_fetch_nothing_from_elsewhere(ask):
    _, headers = ask("GET", "/")
    assert headers[b"a"] == b"b"
    policy = headers[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy.replace("https:", "http:")
    assert "*" not in policy


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("HEAD", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://example.org/"),
        ("GET", "/gradio_api/stream/a/b/c/playlist-file"),
        ("GET", "/gradio_api/custom_component/a/client/b/c"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/assets/../../../etc/passwd"),
        ("GET", "/assets//etc/passwd"),
        ("GET", "/assets/other.js"),
        ("GET", "/static/../index.js"),
        ("GET", "/gradio_api/heartbeat/../file=a"),
        ("GET", "/gradio_api/heartbeat/"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/predict"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/"),
        ("PUT", "/"),
        ("GET", JOIN),
    ],
)
def test_what_it_does_not_ask_for(ask, page, method, path):
    status, _ = ask(method, path, call())
    assert status == 404
    assert page.asked == []


@pytest.mark.parametrize(
    "body",
    [
        call({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}),
        call({"path": "http://example.org/a.png", "meta": {"_type": "gradio.FileData"}}),
        call(["a"]),
        call("a", event_data={"path": "/etc/passwd"}),
        call("a", event_data=[1]),
        json.dumps({"data": {"path": "/etc/passwd"}}).encode(),
        json.dumps([{"path": "/etc/passwd"}]).encode(),
        b"{", b"", b"\xff", b'"a"', b"[" * 90,
    ],
)  # fmt: skip
def test_files_and_what_is_no_call(ask, page, body):
    status, _ = ask("POST", JOIN, body)
    assert status in (400, 413)
    assert page.asked == []


def test_long_requests(ask, page):
    long = call("x" * 100)
    assert ask("POST", JOIN, long)[0] == 413
    assert ask("POST", JOIN, *(long[n : n + 30] for n in range(0, len(long), 30)))[0] == 413
    # It is told before anything is read.
    assert ask("POST", JOIN, content_length="101")[0] == 413
    assert page.asked == []


def test_a_request_that_ends_early(ask, page):
    assert ask("POST", JOIN)[0] == 400
    assert page.asked == []


def test_what_a_link_to_the_page_names_is_not_read(ask, page):
    ask("GET", "/", query=b"deep_link=abc")
    ask("GET", "/gradio_api/queue/data", query=b"session_hash=x")
    assert [query for _, _, query, _ in page.asked] == [b"", b"session_hash=x"]


def test_other_names_of_this_machine_and_other_pages(ask):
    for host in ("localhost:7860", "localhost", "127.0.0.1", "127.0.0.2:80", "[::1]:80", "[::1]"):
        assert ask("GET", "/", host=host)[0] == 200
    for host in (
        "example.org",
        "example.org:80",
        "127.0.0.1.example.org",
        "10.0.0.1:80",
        ":80",
        "",
    ):
        assert ask("GET", "/", host=host)[0] == 403
    assert ask("GET", "/", host="example.org", local=False)[0] == 200
    assert ask("POST", JOIN, call("a"), origin="http://127.0.0.1:7860")[0] == 200
    for origin in ("http://example.org", "http://127.0.0.1:80", "null"):
        assert ask("POST", JOIN, call("a"), origin=origin)[0] == 403


def test_web_sockets_are_closed(page):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(page, (), 1, True)({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_files_of_the_page(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.js").touch()
    (tmp_path / "inner" / "b.css").touch()
    assert files_below(tmp_path, "/assets/") == {"/assets/a.js", "/assets/inner/b.css"}
