"""python -m vse_jax.demo: what it is asked for, and mistakes, each told in one line."""

import re
import socket
import sys
from pathlib import Path

import pytest

from vse_jax.demo import __main__ as demo
from vse_jax.index.kinds import EXACT


@pytest.fixture
def told(capsys):
    """Arguments -> exit code and what was told."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            demo.main([*map(str, arguments)])
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def busy():
    """A port that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_what_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "serve", lambda *given: asked.append(given))
    demo.main(["--workdir=a"])
    demo.main(["--workdir=a", "--workdir=b", "--index=c", "--kind=hnsw", "--host=::", "--port=80"])
    demo.main(["--model=me/clip", "--workdir=a", "--images=d"])
    assert asked == [
        # Nobody else's machine is served unless that is asked for.
        ([Path("a")], None, EXACT, "127.0.0.1", 7860, None),
        ([Path("a"), Path("b")], Path("c"), "hnsw", "::", 80, None),
        ([Path("hub:me/clip"), Path("a")], None, EXACT, "127.0.0.1", 7860, Path("d")),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --workdir or --model"),
        (["--workdir=a", "--port=x"], "'x' is no port: a whole number below 65536"),
        (["--workdir=a", "--port=65536"], "'65536' is no port"),
        (["--workdir=a", "--kind=tree"], "argument --kind: invalid choice: 'tree'"),
        (["--workdir=a", "--share"], "unrecognized arguments: --share"),
    ],
)
def test_wrong_arguments(told, arguments, message):
    code, line = told(*arguments)
    assert code == 2
    assert line.startswith("demo: ")
    assert message in line
    assert line.count("\n") == 1


def test_a_folder_that_is_no_workdir(told, tmp_path):
    code, line = told(f"--workdir={tmp_path}", "--port=0")
    assert code == 1
    assert f"demo: {tmp_path} is no workdir of vse_jax" in line


def test_a_port_that_is_taken(told, busy):
    code, line = told("--workdir=a", f"--port={busy}")
    assert (code, line) == (
        1,
        f"demo: 127.0.0.1:{busy} cannot be listened at (Address already in use): give another "
        "--port or --host\n",
    )


@pytest.mark.parametrize("host", ["256.0.0.1", "a..b"])
def test_a_host_that_is_none(told, host):
    code, line = told("--workdir=a", f"--host={host}")
    assert code == 1
    assert line.startswith(f"demo: --host={host} is no address of this machine: ")
    assert line.count("\n") == 1


def test_without_gradio(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, line = told("--workdir=a")
    assert code == 1
    assert line.startswith("demo: it needs Gradio: pip install 'vse-jax[demo]' (")
    assert line.count("\n") == 1


def test_workdirs_that_can_do_nothing(told, trained):
    code, lines = told(f"--workdir={trained}", "--port=0")
    assert code == 1
    [_, told_of, *others] = re.split(r"\n", lines[lines.index("demo: there is nothing to show") :])
    assert f"{trained}/index/images has no index" in told_of
    assert sum("Train a model" in line for line in others) == 3


def test_who_is_served():
    near = ("127.0.0.1", "127.0.0.2", "::1", "localhost")
    assert [demo.is_local(host) for host in near] == [True] * 4
    assert [demo.is_local(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [
        False, False, False, False,
    ]  # fmt: skip
