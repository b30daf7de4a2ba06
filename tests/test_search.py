"""python -m vse_jax.search: what is indexed and found, what is told of mistakes."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from stores import need

import vse_jax
from vse_jax import search
from vse_jax.finder import Finder
from vse_jax.finder import needed as needed_of
from vse_jax.index import kinds, milvus
from vse_jax.index import store as stores
from vse_jax.index.database import StoreError
from vse_jax.index.records import File

SENTENCES = ["a red circle", "a blue square above a green triangle", "two circles", "a star"]


@pytest.fixture
def photos(tmp_path):
    """Nine pictures, one of them in a folder below, beside what are none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(9):
        path = folder / ("more" if number == 4 else "") / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (30 + number, 40, 3), np.uint8)).save(path)
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture
def run(trained, tmp_path, capsys):
    """Command and arguments -> exit code, what was printed, and what was told."""
    before = signal.getsignal(signal.SIGTERM)

    def command(name, *arguments, folder=trained, index=tmp_path / "index", main=search.main):
        code = 0
        given = [name, f"--workdir={folder}", f"--index={index}", *map(str, arguments)]
        try:
            main(given)
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield command
    signal.signal(signal.SIGTERM, before)


def pictures_of(folder):
    return sorted(folder.rglob("[0-9].png"))


@pytest.fixture
def read(monkeypatch):
    """Names of the pictures that are read, as they come."""
    pixels, names = search.indexing.inputs.pixels, []

    def watched(number, path, size):
        names.append(Path(path).name)
        return pixels(number, path, size)

    monkeypatch.setattr(search.indexing.inputs, "pixels", watched)
    return names


def test_a_folder_is_indexed_and_searched(trained, run, photos, tmp_path):
    code, printed, _ = run("index", f"--images={photos}", "--batch_size=4")
    assert code == 0
    assert printed.startswith(f"9 files: 9 new; 9 items in {tmp_path / 'index'} (")
    model, paths = vse_jax.load(trained), pictures_of(photos)
    scores = model.similarity(model.encode_images(paths), model.encode_texts(SENTENCES[:1]))[:, 0]
    order = np.argsort(-scores)
    code, printed, _ = run("query", SENTENCES[0], "--top=3")
    assert code == 0
    lines = [line.split("\t") for line in printed.splitlines()]
    assert [path for _, path in lines] == [str(paths[row]) for row in order[:3]]
    assert [float(score) for score, _ in lines] == pytest.approx(scores[order[:3]], abs=1e-4)
    # By a picture: it is itself the nearest.
    code, printed, _ = run("query", f"--image={paths[5]}", "--json", f"--top={10**12}")
    found = [json.loads(line) for line in printed.splitlines()]
    assert len(found) == 9
    assert found[0] == {"score": pytest.approx(1.0, abs=1e-5), "file": str(paths[5])}


def test_only_what_changed_is_encoded_again(run, photos, read, tmp_path):
    run("index", f"--images={photos}")
    read.clear()
    code, printed, _ = run("index", f"--images={photos}")
    assert (code, read) == (0, [])
    assert printed.startswith("9 files: as before; 9 items")
    (photos / "0.png").unlink()
    Image.new("RGB", (50, 50), "red").save(photos / "1.png")
    Image.new("RGB", (50, 50), "blue").save(photos / "new.jpg")
    code, printed, _ = run("index", f"--images={photos}")
    assert printed.startswith("9 files: 1 new, 1 changed, 1 gone; 9 items")
    assert sorted(read) == ["1.png", "new.jpg"]
    _, printed, _ = run("query", "a circle", "--top=99")
    names = {Path(line.split("\t")[1]).name for line in printed.splitlines()}
    assert names == {"new.jpg", *(f"{number}.png" for number in range(1, 9))}
    code, printed, _ = run("index", f"--images={photos}", "--forget")
    assert printed.startswith("0 items are in")
    code, printed, told = run("query", "a circle")
    assert (code, printed) == (0, "")
    assert "there is nothing in" in told
    code, _, told = run("index", f"--images={photos}", "--forget")
    assert code == 1
    assert told.endswith(f"search: {photos} is not in {tmp_path / 'index'}, which has nothing\n")


# Reads no picture from the seventeenth on, and makes safe what it has at once.
STUCK = """
import sys, time
from vse_jax import inputs, search
from vse_jax.index import store
pixels, store.PATIENCE, store.REST = inputs.pixels, 0, 0

def stuck(number, path, size):
    while path.stem >= "16":
        time.sleep(9)
    return pixels(number, path, size)

inputs.pixels = stuck
search.main(sys.argv[1:])
"""


@pytest.fixture
def many(tmp_path):
    """A folder of 24 pictures."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(24):
        Image.new("RGB", (9, 9), (number * 10, 0, 0)).save(folder / f"{number:02d}.png")
    return folder


@pytest.mark.slow
def test_what_was_encoded_before_a_kill_is_not_encoded_again(trained, run, many, read, tmp_path):
    command = [
        sys.executable, "-c", STUCK, "index", f"--workdir={trained}", f"--images={many}",
        f"--index={tmp_path / 'index'}", "--batch_size=4",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as running:
        safe, end = 0, time.monotonic() + 120
        # Two batches are under way, and wait for the one that cannot be read.
        while safe < 8 and running.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
            with contextlib.suppress(StoreError):
                safe = len(stores.Store(tmp_path / "index"))
        running.kill()
    assert (safe, running.returncode) == (8, -signal.SIGKILL)
    code, printed, _ = run("index", f"--images={many}")
    assert code == 0
    assert printed.startswith("24 files: 16 new; 24 items")
    assert sorted(read) == [f"{number:02d}.png" for number in range(8, 24)]


def test_what_was_encoded_before_an_interruption_is_not_encoded_again(run, many, read, monkeypatch):
    with monkeypatch.context() as patch:
        pixels = search.indexing.inputs.pixels

        def interrupted(number, path, size):
            if path.stem == "20":
                raise KeyboardInterrupt
            return pixels(number, path, size)

        patch.setattr(search.indexing.inputs, "pixels", interrupted)
        code, _, told = run("index", f"--images={many}", "--batch_size=4")
        assert code == 130
        assert told.endswith("search: stopped; the same command goes on from here\n")
    read.clear()
    code, printed, _ = run("index", f"--images={many}")
    assert printed.startswith("24 files: 12 new; 24 items")
    assert sorted(read) == [f"{number:02d}.png" for number in range(12, 24)]


def test_what_was_encoded_before_sigterm_is_kept(run, many, tmp_path, monkeypatch):
    # In place of ending the tests, where the command has no handler of its own.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pixels = search.indexing.inputs.pixels

    def ended(number, path, size):
        if path.stem == "20":
            os.kill(os.getpid(), signal.SIGTERM)
        return pixels(number, path, size)

    with monkeypatch.context() as patch:
        patch.setattr(search.indexing.inputs, "pixels", ended)
        code, _, told = run("index", f"--images={many}", "--batch_size=4", main=search.start)
    assert (code, told.splitlines()[-1]) == (
        130, "search: stopped; the same command goes on from here",
    )  # fmt: skip
    safe = len(stores.Store(tmp_path / "index"))
    assert 4 <= safe < 24
    _, printed, _ = run("index", f"--images={many}")
    assert printed.startswith(f"24 files: {24 - safe} new; 24 items")


def test_a_query_indexes_first_what_a_folder_has_new(run, photos):
    code, printed, told = run("query", "a circle", f"--images={photos}", "--top=99")
    assert (code, len(printed.splitlines())) == (0, 9)
    assert "9 files: 9 new; 9 items" in told
    (photos / "0.png").unlink()
    _, printed, told = run("query", "a circle", f"--images={photos}", "--top=99")
    assert len(printed.splitlines()) == 8
    assert "8 files: 1 gone; 8 items" in told


def test_pictures_that_cannot_be_read_are_counted(run, photos):
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:200])
    (photos / "empty.jpg").write_bytes(b"")
    code, printed, told = run("index", f"--images={photos}", "--batch_size=4")
    assert code == 0
    assert printed.startswith("10 files: 10 new, 2 unreadable; 8 items")
    assert "left out: 3.png: " in told
    assert "left out: empty.jpg: cannot identify image file" in told
    # They are not tried again until they change.
    code, printed, told = run("index", f"--images={photos}")
    assert printed.startswith("10 files: as before; 8 items")
    assert "left out" not in told


def test_a_picture_that_the_disk_fails_to_give_is_tried_again(run, photos, read, monkeypatch):
    whole, name = Image.open, os.fsdecode(b"caf\xe9.jpg")
    (photos / name).touch()

    def failing(path):
        if Path(path).name == "3.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing)
        code, printed, told = run("index", f"--images={photos}")
    assert code == 0
    assert printed.startswith("9 files: 9 new, 2 unreadable; 8 items")
    assert "left out: 3.png: [Errno 5] Input/output error\n" in told
    assert "left out: caf\\xe9.jpg: its name is not in UTF-8: rename it\n" in told
    read.clear()
    code, printed, told = run("index", f"--images={photos}")
    assert (code, read) == (0, ["3.png"])
    assert printed.startswith("9 files: 1 changed, 1 unreadable; 9 items")


def test_photos_are_turned_as_their_exif_says(run, photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # its first row belongs to the right, its first column to the top
    upright = photos / "5.png"
    stored = Image.fromarray(np.rot90(np.asarray(Image.open(upright))))
    stored.save(photos / "turned.png", exif=exif)
    stored.save(photos / "as stored.png")
    run("index", f"--images={photos}")
    store = stores.Store(tmp_path / "index")
    paths = [item.path for item in store.items(range(11))]
    rows = dict(zip(paths, store.embeddings(np.arange(11)), strict=True))
    np.testing.assert_allclose(rows["turned.png"], rows["5.png"], atol=1e-6)
    assert abs(rows["as stored.png"] - rows["5.png"]).max() > 1e-3
    _, printed, _ = run("query", f"--image={photos / 'turned.png'}", "--top=2")
    assert {line.split("\t")[1] for line in printed.splitlines()} == {
        str(upright), str(photos / "turned.png")
    }  # fmt: skip
    # Of an index of before that, none are added to these.
    store.database.run("DELETE FROM about WHERE name = 'pictures'")
    for command in (["query", "a circle"], ["index", f"--images={photos}"]):
        code, _, told = run(*command)
        assert code == 1
        assert "was made by an earlier version, which did not turn photos" in told


def test_paths_in_the_home_folder(trained, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").symlink_to(trained)
    monkeypatch.chdir(photos)
    search.main(["index", "--workdir=~/run", "--images=~/photos", "--index=~/index"])
    assert stores.Store(tmp_path / "index").roots() == [str(photos)]
    search.main(["query", "--workdir=~/run", "--image=~/photos/7.png", "--index=~/index"])
    assert capsys.readouterr().out.splitlines()[1] == f"1.0000\t{photos / '7.png'}"
    assert not Path("~").exists()


def test_a_model_of_the_hub_has_no_folder_for_its_index(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["index", "--images=."], ["query", "a circle"]):
        with pytest.raises(SystemExit):
            search.main([command[0], "--workdir=hub:one/model", *command[1:]])
        assert capsys.readouterr().err == (
            "search: hub:one/model is no folder here to keep an index in: name one by --index\n"
        )
    assert not list(tmp_path.iterdir())


def test_sentences(trained, run, photos, tmp_path):
    folder = tmp_path / "sentences"
    folder.mkdir()
    (folder / "a.txt").write_text(f"{SENTENCES[0]}\n\n  {SENTENCES[1]}\n", "utf-8-sig")
    (folder / "b.txt").write_text("\n".join(SENTENCES[2:]))
    (folder / "none.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("a caf\xe9".encode("latin-1"))
    index = tmp_path / "index_of_texts"
    code, printed, told = run("index", f"--texts={folder}", "--batch_size=3", index=index)
    assert code == 0
    assert printed.startswith("4 files: 4 new, 1 unreadable; 4 items")
    assert "left out: latin.txt: it cannot be read as UTF-8" in told
    picture = pictures_of(photos)[0]
    model = vse_jax.load(trained)
    scores = model.similarity(model.encode_images([picture]), model.encode_texts(SENTENCES))[0]
    places = [("a.txt", 1), ("a.txt", 3), ("b.txt", 1), ("b.txt", 2)]
    best = int(scores.argmax())
    code, printed, _ = run(
        "query", f"--image={picture}", "--among=texts", "--top=1", "--json", index=index
    )
    name, line = places[best]
    assert json.loads(printed) == {
        "score": pytest.approx(scores[best], abs=1e-5),
        "file": str(folder / name), "line": line, "text": SENTENCES[best],
    }  # fmt: skip
    code, printed, _ = run("query", SENTENCES[3], "--top=1", index=index)
    assert printed.endswith(f"\t{folder / 'b.txt'}:2\t{SENTENCES[3]}\n")
    # One index has one kind.
    code, _, told = run("index", f"--images={photos}", index=index)
    assert code == 1
    assert "is an index of texts: index images elsewhere (--index)" in told


def test_an_index_is_beside_its_model(trained, run):
    assert search.finder.default_folder(trained, "images") == trained / "index" / "images"
    code, _, told = run("query", "a circle")
    assert code == 1
    assert "has no index: make one with python -m vse_jax.search index" in told


def test_another_model_is_refused(run, photos, trained_leap):
    run("index", f"--images={photos}")
    for command in (["query", "a circle"], ["index", f"--images={photos}"]):
        code, _, told = run(*command, folder=trained_leap)
        assert code == 1
        assert "was made by another model, whose embeddings mean other things" in told


def test_distances(trained_leap, run, photos):
    """Of LEAP, the nearest first."""
    run("index", f"--images={photos}", folder=trained_leap)
    _, printed, _ = run("query", "a red circle", "--top=9", folder=trained_leap)
    scores = [float(line.split("\t")[0]) for line in printed.splitlines()]
    assert len(scores) == 9
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < 0


def test_models_without_embeddings_are_refused(run, photos, trained_dvsa, trained_cam):
    code, _, told = run("index", f"--images={photos}", folder=trained_dvsa)
    assert code == 1
    assert "the network 'dvsa' looks at every pair" in told
    code, _, told = run("index", f"--images={photos}", folder=trained_cam)
    assert code == 1
    assert "this model compares no pictures with sentences" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query"], "takes a sentence in quotes, or --image=FILE"),
        (["query", "a", "--image=b.png"], "takes a sentence in quotes, or --image=FILE"),
        (["query", "a", "--images=b", "--among=texts"], "--images is of pictures to find: leave"),
        (["query", " "], "the sentence is empty"),
        (["query", "a", "--index="], "argument --index: it is empty; expected a path"),
        (["query", "a", "--top=0"], "'0' is no whole number of 1 or more"),
        (["index"], "one of the arguments --images --texts is required"),
        (["index", "--images=a", "--process=1"], "--processes and --process belong together"),
    ],
)
def test_wrong_flags_end_in_one_line(run, arguments, message):
    code, _, told = run(*arguments)
    assert code == 2
    assert message in told
    assert told.count("\n") == 1


def test_a_process_that_is_lost_is_told(run, photos, monkeypatch, capsys):
    class Left(BaseException):
        """Instead of os._exit."""

    def left(code):
        raise Left(code)

    def lost(*_):
        raise jax.errors.JaxRuntimeError("Gloo all-gather failed: Connection closed by peer")

    monkeypatch.setattr(search.parallel, "initialize", lambda *_: None)
    monkeypatch.setattr(search.indexing, "update", lost)
    monkeypatch.setattr(search.os, "_exit", left)
    flags = ["--coordinator=localhost:1", "--processes=2", "--process=0"]
    monkeypatch.setattr(search.parallel, "loss_behind", lambda error: f"lost: {error}")
    with pytest.raises(Left, match="1"):
        run("index", f"--images={photos}", *flags)
    assert capsys.readouterr().err.endswith(
        "search: lost: Gloo all-gather failed: Connection closed by peer\n"
    )


def test_types_that_are_not_taken_are_told(run, tmp_path):
    (tmp_path / "phone").mkdir()
    for name in ("1.HEIC", "2.heic", "notes"):
        (tmp_path / "phone" / name).write_bytes(b"some")
    code, printed, told = run("index", f"--images={tmp_path / 'phone'}")
    assert (code, printed[:18]) == (0, "0 files: as before")
    assert "files of other types, not looked at: 2 .heic, 1 without; taken are .avif .bmp" in told


def test_folders_that_are_none(run, photos, tmp_path):
    code, _, told = run("index", f"--images={tmp_path / 'nowhere'}")
    assert (code, told.strip().splitlines()[-1]) == (
        1,
        f"search: {tmp_path / 'nowhere'} is not there",
    )
    code, _, told = run("index", f"--images={photos / '0.png'}")
    assert code == 1
    assert "0.png is no folder" in told


def test_from_python(trained, run, photos, tmp_path):
    run("index", f"--images={photos}")
    model = vse_jax.load(trained)
    finder = Finder(model, tmp_path / "index")
    both = finder.by_texts(SENTENCES[:2], k=2)
    assert [len(hits) for hits in both] == [2, 2]
    assert both[0][0].item.where in pictures_of(photos)
    [[itself]] = finder.by_images([pictures_of(photos)[2]], k=1)
    assert itself.item.path == "2.png"
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        finder.by_texts(["a"], k=0)


# Indexes, and again as nothing has changed. Then the second process is late to look what is to be
# encoded, and the first has other indices to build, until it is told that the second has ended.
TWICE = """
import sys, time
from vse_jax import indexing, parallel, search
leave, parallel.leave = parallel.leave, lambda: None
search.main(sys.argv[1:])
parallel.initialize, parallel.leave = lambda *_: None, leave
wanted = indexing._wanted

def late(folder):
    time.sleep(0.5 * (sys.argv[-1] == "--process=1"))
    return wanted(folder)

indexing._wanted, search._keep_up = late, lambda *_: sys.stdin.readline()
search.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_index_what_one_does(trained, run, photos, tmp_path):
    for number in range(4):  # some in the share of each
        (photos / f"{number}.png").write_bytes(b"none")
    run("index", f"--images={photos}", "--batch_size=4")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
    }
    command = [
        sys.executable, "-c", TWICE, "index", f"--workdir={trained}",
        f"--images={photos}", f"--index={tmp_path / 'two'}", "--batch_size=4",
        f"--coordinator={address}", "--processes=2",
    ]  # fmt: skip
    running = [
        subprocess.Popen(
            [*command, f"--process={number}"], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
        )
        for number in (0, 1)
    ]  # fmt: skip
    try:
        second = running[1].communicate(timeout=120)[0]
        assert running[1].returncode == 0, second
        assert running[0].poll() is None
        first = running[0].communicate("\n", timeout=60)[0]
        assert running[0].returncode == 0, first
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert "9 files: 9 new, 4 unreadable; 5 items" in first
    assert first.count(": cannot identify image file") == 4
    assert "9 files: as before; 5 items" in first
    one, two = (stores.Store(tmp_path / name) for name in ("index", "two"))
    numbers = np.arange(5)
    assert one.items(numbers.tolist()) == two.items(numbers.tolist())
    np.testing.assert_allclose(one.embeddings(numbers), two.embeddings(numbers), atol=1e-6)


def found_by(finder):
    """Names of all pictures that are found, and their scores."""
    hits = finder.by_texts(["a circle"], 99)[0]
    assert len(hits) == len({hit.item.path for hit in hits})
    finder.close()
    return {Path(hit.item.path).name for hit in hits}, [round(hit.score, 3) for hit in hits]


def test_every_kind_follows_the_folder(trained_leap, run, photos, tmp_path):
    """New, changed and gone pictures, and a folder that is forgotten."""
    need("faiss", "pymilvus", "milvus_lite")
    model = vse_jax.load(trained_leap)
    code, _, told = run("query", "a circle", "--kind=codes", folder=trained_leap)
    assert code == 1
    run("index", f"--images={photos}", "--kind=codes", folder=trained_leap)
    code, _, told = run("query", "a circle", "--kind=hnsw", folder=trained_leap)
    assert code == 1
    assert "has no index of the kind 'hnsw': give --kind=hnsw when indexing" in told
    # IVF-PQ needs more items.
    others = [kind for kind in kinds.KINDS if kind != "ivfpq"]
    for kind in others:
        kinds.build(kind, stores.Store(tmp_path / "index"), needed_of(model))
    (photos / "0.png").unlink()
    Image.new("RGB", (50, 50), "red").save(photos / "1.png")
    Image.new("RGB", (50, 50), "blue").save(photos / "new.jpg")
    code, printed, _ = run("index", f"--images={photos}", folder=trained_leap)
    assert printed.startswith("9 files: 1 new, 1 changed, 1 gone; 9 items")
    names = {"new.jpg", *(f"{number}.png" for number in range(1, 9))}
    scores = {}
    for kind in others:
        found, scores[kind] = found_by(Finder(model, tmp_path / "index", kind))
        assert found == names, kind
    assert scores["codes"] == scores["pq"]
    assert scores["exact"] == scores["flat"] == scores["hnsw"] == scores["milvus"]
    assert scores["exact"] != scores["codes"]
    _, printed, _ = run("query", "a circle", "--top=99", "--kind=codes", folder=trained_leap)
    assert [round(float(line.split("\t")[0]), 3) for line in printed.splitlines()] == pytest.approx(
        scores["codes"], abs=2e-3
    )
    # What Milvus has lost is sent again where it is asked for.
    store = stores.Store(tmp_path / "index")
    with milvus._client(store, None) as client:
        client.drop_collection(milvus._name(store))
    run("index", f"--images={photos}", "--kind=milvus", folder=trained_leap)
    assert found_by(Finder(model, tmp_path / "index", "milvus"))[0] == names
    run("index", f"--images={photos}", "--forget", folder=trained_leap)
    for kind in others:
        assert found_by(Finder(model, tmp_path / "index", kind)) == (set(), []), kind


def test_kinds_that_cannot_be_are_told_before_any_work(run, photos, monkeypatch):
    def read(*arguments):
        raise AssertionError(f"a picture was read: {arguments}")

    monkeypatch.setattr(search.indexing.inputs, "pixels", read)
    for arguments, message in (
        (["--kind=codes"], "search: the model has no codebook: train with objective.quantizer"),
        (["--kind=milvus", "--uri=here"], "--uri=here: expected http://host:port of a Milvus"),
        (["--uri=http://localhost:1"], "--uri is of a server of Milvus: give --kind=milvus"),
    ):
        if "milvus" in arguments[0]:
            need("pymilvus")
        code, _, told = run("index", f"--images={photos}", *arguments)
        assert code == 1
        assert message in told
        assert told.count("\n") == 1


def test_a_kind_that_cannot_be_kept_up_to_date_stops_no_indexing(run, photos, monkeypatch):
    need("faiss")
    run("index", f"--images={photos}", "--kind=hnsw")

    def broken(kind, *_):
        assert kind == "hnsw"
        raise StoreError("no room")

    monkeypatch.setattr(kinds, "build", broken)
    (photos / "0.png").unlink()
    code, printed, told = run("index", f"--images={photos}")
    assert code == 0
    assert printed.startswith("8 files: 1 gone; 8 items")
    assert "the index of the kind hnsw is left behind: no room" in told
    code, _, told = run("index", f"--images={photos}", "--kind=hnsw")
    assert code == 1
    assert told.endswith("search: no room\n")


def test_an_index_that_changes_under_a_search(trained, run, photos, tmp_path):
    """Numbers of before are never taken for items of after."""
    run("index", f"--images={photos}")
    model, folder = vse_jax.load(trained), tmp_path / "index"
    finder = Finder(model, folder)
    queries = model.encode_images([photos / "7.png"])
    searcher, changes = kinds.opened, []

    def opened(*arguments):
        found = searcher(*arguments)

        def changing(asked, k):
            hits = found.search(asked, k)
            if changes:
                changes.pop()()
            return hits

        return kinds.Searcher(changing)

    def forgotten():
        other = stores.Store(folder)
        other.compare(photos, [File("7.png", 0, 0)])
        other.forget_missing(photos)

    finder.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "opened", opened)
        [[hit]] = finder.by_embeddings(queries, 1)
        assert hit.item.path == "7.png"
        changes.append(forgotten)
        assert finder.by_embeddings(queries, 1) == [[]]
        assert not changes
        changes.extend([lambda: stores.Store(folder).database.changed()] * 9)
        with pytest.raises(StoreError, match="changes faster than it is searched: ask again"):
            finder.by_embeddings(queries, 1)
