"""python -m vse_jax.report W1 W2 ...: what is compared, what is kept apart, what is told."""

import json
import re

import jax
import pytest
from test_report import EVIL, Page, log, metrics, queries
from test_report import workdir as write_workdir

import vse_jax
from vse_jax.report import __main__ as command
from vse_jax.report import comparison, comparison_page, measures
from vse_jax.report.runs import ReportError


@pytest.fixture
def make(tmp_path):
    """Name, lines of the log and fields of the report -> workdir."""

    def made(name, lines=(), data="a", shown=None, **fields):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_workdir(folder, lines, **fields)
        if data is not None:
            (folder / "origin.json").write_text(json.dumps({"data": data}))
        if shown is not None:
            (folder / "queries.json").write_text(json.dumps(shown, default=lambda x: x.item()))
        return folder

    return made


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Arguments -> exit code, what was printed, and what was told."""

    def ran(*arguments):
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            command.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):
                return 1, capsys.readouterr().out, code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return ran


def groups(*folders):
    return comparison.groups(comparison.collect(folders))


def section(text, title):
    return Page(text.split(f"<h2>{title}</h2>")[1].split("</section>")[0])


def test_two_runs_are_one_page_a_table_and_a_file(make, run, tmp_path):
    one = make("one", log(), metrics=metrics(20.0), shown=queries(), oracle=metrics(80.0))
    two = make("two", log(3), metrics=metrics(30.0), shown=queries(), step=200)
    code, printed, told = run(one, two, "--output=all.html", "--output=all.md", "--output=all.json")
    assert (code, printed.split(), told) == (0, ["all.html", "all.md", "all.json"], "")
    text = (tmp_path / "all.html").read_text()
    page = Page(text)
    assert "2 runs on shapes" in page.text
    assert "shapes · test split · protocol shapes_500" in page.text
    results = section(text, "Results").text
    assert "one21.025.030.071,234.621.025.030.071,234.6152.0" in results
    assert "two31.035.040.071,234.631.035.040.071,234.6212.0" in results
    assert "oracle81.085.090.0" in results
    # Three recalls both ways and rsum of the second; ranks are alike, so both are best.
    assert len(re.findall(r"<b class=best>", text.split("<h2>Results")[1])) - 1 == 7 + 4 * 2
    table = (tmp_path / "all.md").read_text()
    assert "| two | **31.0** | **35.0** | **40.0** | **7** | **1,234.6** |" in table
    assert "| one | 21.0 | 25.0 | 30.0 | **7** |" in table
    [group] = json.loads((tmp_path / "all.json").read_text())["groups"]
    assert [found["metrics"]["rsum"] for found in group["runs"]] == [152.0, 212.0]
    assert group["best"]["Retrieval"]["rsum"] == ["two"]
    assert group["best"]["Retrieval"]["i2t/MedR"] == ["one", "two"]


def test_a_run_may_be_named_as_what_it_is_held_against(make, run, tmp_path):
    folders = make("oracle", metrics=metrics(30.0), oracle=metrics(80.0)), make("b")
    assert run(*folders, "--output=x.md", "--output=x.html")[0] == 0
    lines = (tmp_path / "x.md").read_text().splitlines()
    assert [line.split(" | ")[:2] for line in lines if "oracle" in line][1:3] == [
        ["| oracle", "**31.0**"],
        ["| *oracle*", "81.0"],
    ]
    shown = section((tmp_path / "x.html").read_text(), "Results").text
    assert "oracle31.0" in shown
    assert "oracle81.0" in shown


def test_the_default_output(make, run, tmp_path):
    assert run(make("one"), make("two"))[1] == "comparison.html\n"
    assert (tmp_path / "comparison.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("key", "values", "best"),
    [
        ("i2t/R@1", [10.0, 12.0, 11.0], {1}),
        ("t2i/MedR", [10.0, 12.0, 11.0], {0}),
        ("caption/perplexity", [15.0, 12.0, 12.04], {1, 2}),
        ("codes/asymmetric/rsum", [1.0, float("nan"), float("inf")], set()),
        ("rsum", [1.0, float("nan"), 2.0], {2}),
        ("expert/pairs", [1.0, 2.0, 3.0], set()),
        ("maps/agreement_chance", [0.1, 0.2, 0.3], set()),
        ("caption/nearest/CIDEr", [1.0, 2.0, 3.0], set()),
        ("something/new", [1.0, 2.0, 3.0], set()),
        ("rsum", [5.0], set()),
    ],
)
def test_the_best_of_a_measure(key, values, best):
    found = measures.best(key, {str(number): value for number, value in enumerate(values)})
    assert found == set(map(str, best))


def test_other_data_splits_and_protocols_stand_apart(make, run):
    shapes = {"data": {"shapes_clutter": 1.0}}
    folders = [
        make("a", config=shapes),
        make("b", config=shapes, data="b"),  # other training data, say
        make("c", protocol="shapes_100"),
        make("d", split="validation"),
        make("e", dataset="flickr8k"),
        make("f", config={"data": {"shapes_clutter": 2.0}}, data="f", chance={"rsum": 1.0}),
        # Nothing says that this is of other data, but that of the next is: chance is another.
        make("g", data=None, config={}, chance={"rsum": 1.0}, ensemble=["a", "b"]),
        make("h", data=None, config={}, chance={"rsum": 2.0}, ensemble=["a", "b"]),
    ]
    found = [[own.name for own in group.runs] for group in groups(*folders)]
    assert found == [["a", "b", "g"], ["c"], ["d"], ["e"], ["f"], ["h"]]
    code, _, told = run(*folders)
    assert code == 0
    assert "report: not all of one data set, split and protocol, so shown apart: a, b, g" in told


def test_groups_do_not_share_a_table(make):
    found = groups(make("a"), make("b"), make("c", protocol="other", metrics=metrics(99.0)))
    text = comparison_page.render(found)
    assert "3 runs on 2 kinds of test data" in Page(text).text
    first, second = text.split("<h2 class=group>")[1:]
    assert ("protocol other" in first, "protocol other" in second) == (False, True)
    assert ("100.0" in first, "100.0" in second) == (False, True)
    # Alone it is best of nothing.
    assert "<b class=best>" not in second


def test_only_what_differs_in_configs_is_listed(make):
    def config(**own):
        own = {"seed": 0, "rate": 1e-3, "path": ["x", None]} | own
        return {
            "train": {"learning_rate": own["rate"], "batch_size": 8, "freeze": own["path"]},
            "seed": own["seed"],
            "data": {"manual_dir": f"here/{own['seed']}"},
            "objective": {
                "infonce": {"weight": own.get("infonce", 0.0), "temperature": own["rate"]},
                "triplet": {"weight": 1.0, **own.get("triplet", {})},
            },
        }

    found = groups(
        make("a", config=config()),
        make("b", config=config(seed=1, rate=2e-3, path=[["y", 0.5]])),
        make("c", config={}, ensemble=["a", "b"]),
        make("d", config=config(triplet={"margin": 0.2})),
    )
    assert [tuple(one) for one in comparison.differences(found[0])] == [
        ("objective.triplet.margin", ["(not there)", "(not there)", "–", "0.2"], True),
        ("seed", ["0", "1", "–", "0"], True),
        ("train.freeze", ["('x', None)", "(('y', 0.5),)", "–", "('x', None)"], True),
        ("train.learning_rate", ["0.001", "0.002", "–", "0.001"], True),
        ("data.manual_dir", ["here/0", "here/1", "–", "here/0"], False),
    ]
    shown = section(comparison_page.render(found), "What differs in their configs").text
    assert "train.batch_size" not in shown
    assert "Where files are, and how much is shown" in shown


def test_curves_lie_over_each_other_in_the_colours_of_their_runs(make):
    half = [{"step": 50, "loss": 1e-3}, {"step": 80, "loss": float("nan")}]
    found = groups(
        make("a", log()), make("b", half, step=60), make("c"), make("d", log(), step=400)
    )
    text = comparison_page.render(found).split("<h2>Curves")[1].split("</section>")[0]
    loss, rsum = text.split("<figure>")[1:3]
    assert "Loss <span class=muted>logarithmic" in loss
    assert re.findall(r'class="line (c\d)"', loss) == ["c0", "c1", "c3"]
    assert re.findall(r'<i class="(c\d)"></i>(\w)', loss) == [("c0", "a"), ("c1", "b"), ("c3", "d")]
    # The second was reported beyond its last logged step.
    assert re.findall(r'class="ring (c\d)"', loss) == ["c0", "c3"]
    assert re.findall(r'class="line (c\d)"', rsum) == ["c0", "c3"]
    assert 'class="axis">step' in rsum
    assert "1 logged values are not finite and left out" in text


def test_a_ring_is_on_its_line(make):
    line = [{"step": 0, "loss": 1.0}, {"step": 100, "loss": 3.0}]
    found = groups(make("a", line, step=25), make("b", line, step=50))
    text = comparison_page.render(found)
    axis = {"0": 46.0, "100": 348.0}
    rings = re.findall(r'class="ring c\d" cx="([\d.]+)" cy="([\d.]+)"', text)
    dots = re.findall(r'<circle class="c0" cx="([\d.]+)" cy="([\d.]+)"', text)
    (x0, y0), (x1, y1) = [(float(x), float(y)) for x, y in dots]
    assert (x0, x1) == (axis["0"], axis["100"])
    for share, (x, y) in zip((0.25, 0.5), rings, strict=True):
        assert float(x) == pytest.approx(x0 + share * (x1 - x0), abs=0.11)
        assert float(y) == pytest.approx(y0 + share * (y1 - y0), abs=0.11)


def test_validation_on_fewer_pictures_has_a_chart_of_its_own(make):
    limited = {"data": {"validation_limit": 200}}
    found = groups(make("a", log()), make("b", log(), config=limited))
    text = comparison_page.render(found).split("<h2>Curves")[1]
    whole, few = (text.split(f"<figcaption>{title}</f")[1].split("</figure>")[0]
                  for title in ("Validation rsum", "Validation rsum, 200 pictures"))  # fmt: skip
    assert (whole.count('class="line'), few.count('class="line')) == (1, 1)
    assert "c0" in whole
    assert "c1" in few


def test_the_same_queries_are_answered_side_by_side(make):
    other = queries("a cat", 1)
    other["i2t"][0]["name"] = "a dog"
    written = {"image": "", "name": "a dog", "written": "it runs", "said": ["it sits"]}
    found = groups(
        make("a", shown=queries("a dog", 1) | {"captions": [written]}),
        make("b", shown=other | {"captions": [written | {"written": "it flies"}]}),
        make("c", shown=queries("a cow", 1)),
        make("d"),
    )
    text = comparison_page.render(found)
    shown = section(text, "What the same image retrieved")
    assert shown.count("article") == 1
    assert shown.count("div", "answer") == 2
    # Three of five are shown, in both a rank and one tick.
    assert "aright one at rank 3a dog 00.000a dog 11.000✓a dog 22.000b" in shown.text
    assert "a cow" not in shown.text
    assert "What the same caption retrieved" not in text
    both = section(text, "What was written of the same picture").text
    assert both.startswith("Left what people wrote.a dogit sitsa“it runs”")
    assert "“it flies”" in both


def test_what_a_run_took_is_told(make):
    rows = [
        {"step": 10, "epoch": 0.5, "loss": 1.0, "time/images_per_second": 16.0},
        {"step": 20, "epoch": 1.0, "validation/rsum": 1.0},
        {"step": 40, "epoch": 2.0, "loss": 1.0, "time/images_per_second": 8.0},
    ]
    config = {"train": {"batch_size": 8}, "model": {"network": "saf"}}
    [run] = comparison.collect([make("one", rows, config=config)])
    # Ten steps of eight pairs at 16 a second, twenty at 8; those before validation were not timed.
    assert run.seconds == pytest.approx(10 * 8 / 16 + 20 * 8 / 8)
    text = comparison_page.render(comparison.groups([run]))
    # Network, reported step, steps, epochs, time, pictures a second; no parameters, no checkpoint.
    assert " ".join(
        re.findall("<t[dh][^>]*>(?:<i[^>]*></i>)?([^<]+)<", text.split("<h2>Runs")[1])[8:17]
    ) == ("one saf 300 40 2 25 s 12 – –")


def test_the_size_of_a_run_is_told(trained):
    [run] = comparison.collect([trained])
    variables = vse_jax.load(trained)._variables
    assert run.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert run.checkpoint_bytes > 4 * run.parameters
    text = section(comparison_page.render(comparison.groups([run])), "Runs").text
    assert f"{run.parameters:,}{run.checkpoint_bytes / 2**20:.1f} MiB" in text


def test_names_are_the_shortest_ends_of_paths(make):
    folders = [make(name) for name in ("x/a", "x/b", "y/b", "y/c/0")]
    assert [run.name for run in comparison.collect(folders)] == ["a", "x/b", "y/b", "c/0"]


def test_measures_of_one_alone_and_further_protocols(make):
    both = metrics(20.0) | {"caption/CIDEr": 3.0}
    found = groups(
        make("a", metrics=both, protocols={"five": metrics(50.0)}),
        make("b", protocols={"five": metrics(60.0)}),
    )
    assert [table.title for table in comparison.tables(found[0])] == [
        "Retrieval",
        "Retrieval, protocol five",
    ]
    text = section(comparison_page.render(found), "Results").text
    assert "Measured of one run alone:a: caption/CIDEr" in text
    assert "b61.065.070.0" in text


def test_what_is_no_number_is_said_to_be_none(make, run, tmp_path):
    bad = metrics(20.0) | {"rsum": float("nan"), "i2t/R@1": float("inf"), "i2t/R@5": None}
    code, *_ = run(make("a", metrics=bad), make("b"), "--output=x.html", "--output=x.json")
    assert code == 0
    assert "a∞–30.0" in Page((tmp_path / "x.html").read_text()).text
    assert "71,234.6NaN" in Page((tmp_path / "x.html").read_text()).text
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text)["groups"][0]["runs"][0]["metrics"]["rsum"] is None
    assert "NaN" not in text


def test_everything_named_is_escaped_and_nothing_is_loaded(make):
    shown = queries(EVIL, 1)
    shown["i2t"][0]["image"] = "https://example.com/spy.gif"
    evil = {
        "dataset": EVIL, "split": EVIL, "protocol": EVIL, "command": EVIL, "warnings": [EVIL],
        "metrics": {EVIL: 1.0, "rsum": 2.0}, "ensemble": [EVIL],
    }  # fmt: skip
    folders = [
        make(f"<i>{n}", log(), shown=shown, config={EVIL: n, "seed": EVIL * n}, **evil)
        for n in (1, 2)
    ]
    text = comparison_page.render(groups(*folders))
    page = Page(text)
    assert "<script" not in text
    assert "<i>1" not in text
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"https?:|url\(|@import|file:", text)


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda f: (f / "report.json").unlink(), r"report\.json does not exist: train with"),
        (lambda f: (f / "report.json").write_text("[1]"), "report.json holds a list, not an obj"),
        (lambda f: (f / "report.json").write_text('{"met'), "report.json is not JSON: "),
        (lambda f: (f / "report.json").write_bytes(b"\xff"), "report.json is not JSON: .*utf-8"),
        (
            lambda f: (f / "report.json").write_text('{"metrics": 3}'),
            "report.json: 'metrics' is a int, not a dict",
        ),
        (lambda f: (f / "origin.json").write_text("{"), "origin.json cannot be read: "),
        (lambda f: (f / "metrics.jsonl").mkdir(), "metrics.jsonl cannot be read: Is a directory"),
    ],
)
def test_a_broken_workdir_is_told_in_one_line(make, run, tmp_path, break_it, told):
    broken = make("broken")
    break_it(broken)
    code, printed, message = run(make("whole"), broken)
    assert (code, printed) == (1, "")
    assert re.match(f"report: .*broken/{told}", message)
    assert "\n" not in message.strip()
    assert not (tmp_path / "comparison.html").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "all of queries.json could not be read"),
        ("[]", "all of queries.json could not be read"),
        ('{"i2t": [{"captions": [{"text": 3}]}]}', "1 of 1 items of queries.json could not be"),
        ('{"t2i": 3, "captions": []}', "1 of 1 items of queries.json could not be read"),
    ],
)
def test_queries_that_cannot_be_read_are_left_out_and_told(make, content, told):
    folder = make("a")
    (folder / "queries.json").write_text(content)
    text = comparison_page.render(groups(folder, make("b")))
    assert f"a: {told}" in section(text, "Warnings").text


def test_a_damaged_checkpoint_is_told(make):
    folder = make("a")
    (folder / "checkpoints" / "best" / "7" / "state").mkdir(parents=True)
    text = comparison_page.render(groups(folder, make("b")))
    assert "checkpoints/best/7 is damaged: " in section(text, "Warnings").text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a", "a"], "a is named twice"),
        (["a", "b", "--output=x.pdf"], "'x.pdf' does not end in .html or .json or .md"),
        (["a", "--output=x.html"], "--output is for comparing several workdirs"),
        (["a", "b", "--output=none/x.html"], "none/.*x.html cannot be written: No such file"),
        ([], "the following arguments are required: workdir"),
    ],
)
def test_mistakes_are_told_in_one_line(make, run, arguments, told):
    folders = {name: make(name) for name in "ab"}
    code, printed, message = run(*(folders.get(argument, argument) for argument in arguments))
    assert code in (1, 2)
    assert printed == ""
    assert re.match(f"report: .*{told}", message)
    assert "\n" not in message.strip()


def test_a_folder_named_twice_is_found_behind_a_link(make, tmp_path):
    folder = make("a")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ReportError, match="named twice"):
        comparison.collect([folder, tmp_path / "link"])
