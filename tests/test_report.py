"""The report is one file that loads nothing, escapes everything and survives broken logs."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vse_jax.report import __main__ as command
from vse_jax.report import charts, tables
from vse_jax.report import page as report

EVIL = "<script>alert('x')</script> & \"quoted\" \ud800"
VOID = {"meta", "img", "path"}


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails where an end tag has no start tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.links += [value for key, value in attributes.items() if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def count(self, tag, kind=None):
        return sum(
            name == tag and (kind is None or kind in attributes.get("class", "").split())
            for name, attributes in self.tags
        )


def picture(size=(40, 20), mode="RGB", **options):
    encoded = io.BytesIO()
    Image.new(mode, size, "red").save(encoded, "PNG", **options)
    return encoded.getvalue()


def metrics(recall):
    found = {f"{way}/R@{k}": recall + k for way in ("i2t", "t2i") for k in (1, 5, 10)}
    for way in ("i2t", "t2i"):
        found |= {f"{way}/MedR": 7.0, f"{way}/MeanR": 1234.56}
    return {**found, "rsum": 6 * recall + 32}


def queries(text="a dog", count=12):
    image = report.thumbnail(picture())
    right = np.bool_(True)
    captions = [
        {"text": f"{text} {j}", "score": np.float32(j), "right": right if j == 2 else False}
        for j in range(5)
    ]
    images = [
        {"image": image, "name": f"{text} {j}.jpg", "score": 0.5, "right": j == 0} for j in range(5)
    ]
    return {
        "i2t": [{"image": image, "name": text, "rank": 3, "captions": captions}] * count,
        "t2i": [{"text": text, "name": "0.jpg", "rank": 1, "images": images}] * count,
    }


def workdir(tmp_path, lines=(), **fields):
    fields = {
        "config": {"seed": 3, "train": {"batch_size": 128}},
        "dataset": "shapes",
        "split": "test",
        "protocol": "shapes_500",
        "step": 300,
        "metrics": metrics(20.0),
    } | fields
    (tmp_path / "report.json").write_text(json.dumps(fields))
    if lines:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


def log(steps=6):
    for step in range(100, 100 * steps + 1, 100):
        yield {"step": step, "epoch": step / 200, "loss": 1000 / step, "learning_rate": 2e-4}
        validation = {f"validation/{key}": value for key, value in metrics(step / 20).items()}
        yield {"step": step, "epoch": step / 200, **validation}


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def test_a_whole_report_has_all_its_parts(tmp_path):
    folder = workdir(
        tmp_path,
        log(),
        name="vse_infinity",
        oracle=metrics(80.0),
        skipped={"not a picture": ["a.jpg", "b.jpg"], "nothing": []},
        warnings=["few captions"],
        timing={"training, s": 1841.2},
        command="python -m vse_jax.main --config=configs/shapes.py:vsepp",
    )
    path = report.write(folder, queries())
    assert path == folder / "report.html"
    page = page_of(path)
    for part in (
        "vse_infinity on shapes",
        "test split · protocol shapes_500 · checkpoint of step 300",
        "Batch size128",
        "Image → text21.025.030.071,234.6",
        "oracle81.085.090.071,234.6",
        "share of it25.9%29.4%33.3%",
        "rsum152.0 · oracle 512.0, share 29.7%",
        "not a picture: 2a.jpg, b.jpg",
        "few captions",
        "training, s1.841k",
        "python -m vse_jax.main --config=configs/shapes.py:vsepp",
        '"batch_size": 128',
    ):
        assert part in page.text
    assert "nothing: 0" not in page.text
    assert page.count("figure") == page.count("svg") == 7
    assert page.count("path", "mark") == 7
    assert page.count("article") == 24
    assert page.count("li", "right") == page.count("span", "tick") == 24
    assert all(
        attributes["aria-label"] == "right"
        for tag, attributes in page.tags
        if attributes.get("class") == "tick"
    )
    assert sorted(file.name for file in folder.iterdir()) == [
        "metrics.jsonl",
        "queries.json",
        "report.html",
        "report.json",
    ]


def test_the_page_loads_nothing_from_anywhere(tmp_path):
    found = queries()
    found["i2t"][0]["image"] = "https://example.com/spy.gif"
    found["t2i"][0]["images"][1]["image"] = "file:///etc/passwd"
    text = report.write(workdir(tmp_path, log()), found).read_text()
    page = Page(text)
    assert page.links
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"https?:|url\(|@import|file:", text)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}


def test_everything_a_user_can_name_is_escaped(tmp_path):
    folder = workdir(
        tmp_path,
        [{"step": step, "epoch": 0, EVIL: step} for step in (1, 2)],
        config={EVIL: EVIL, "model": {"image": {"name": EVIL}}},
        name=EVIL,
        dataset=EVIL,
        split=EVIL,
        protocol=EVIL,
        step=EVIL,
        skipped={EVIL: [EVIL]},
        warnings=[EVIL],
        timing={EVIL: EVIL},
        command=EVIL,
        metrics={**metrics(1.0), EVIL: 1.0},
    )
    text = report.write(folder, queries(EVIL)).read_text()
    page = Page(text)
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert('x')</script> & \"quoted\"" in page.text
    known = {"class", "alt", "title", "src", "loading"}
    assert {key for tag, attributes in page.tags if tag == "img" for key in attributes} <= known


def test_rendering_again_uses_the_queries_kept(tmp_path, capsys):
    folder = workdir(tmp_path)
    first = report.write(folder, queries("a cat")).read_text()
    command.main([str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text() == first
    assert page_of(folder / "report.html").count("article") == 24


def test_the_least_report_is_a_page(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    page = page_of(report.write(tmp_path))
    assert page.count("figure") == page.count("article") == page.count("table") == 0
    assert f"--mode=evaluate --workdir={tmp_path}" in page.text


def test_other_measures_are_shown_without_retrieval(tmp_path):
    page = page_of(report.write(workdir(tmp_path, metrics={"align/accuracy": 21.34})))
    assert "align/accuracy21.3" in page.text
    assert page.count("table") == 0


def test_captions_have_a_table_of_whose_they_are(tmp_path):
    found = {"caption/BLEU-4": 16.12, "caption/CIDEr": 134.4, "caption/distinct": 34.3}
    found |= {"caption/nearest/BLEU-4": 7.74, "caption/nearest/CIDEr": 20.78}
    config = {"model": {"network": "multimodal_rnn", "text": {"backbone": "gru"}, "dimension": 8}}
    config["model"]["captioner"] = {"cell": "lstm"}
    folder = workdir(tmp_path, metrics=found, config=config)
    section = report.render(report.read(folder)).split("<h2>Results")[1].split("</section>")[0]
    heads = re.findall(r"<th scope=col>([^<]+)", section)
    assert heads == ["BLEU-4", "CIDEr"]
    rows = re.findall(r"<th scope=row>([^<]+)</th><td>([^<]+)</td><td>([^<]+)</td>", section)
    assert rows == [
        ("the search's", "16.1", "134.4"),
        ("of the most similar training picture", "7.7", "20.8"),
    ]
    text = page_of(report.write(folder)).text
    assert "Different captions, %34.3" in text
    assert "caption/BLEU" not in text
    facts = text[: text.index("Results")]
    assert "Captions written bylstm" in facts
    assert "Sentences read by" not in facts
    assert "Dimension" not in facts


def test_correlations_have_three_decimals_and_counts_none(tmp_path):
    judged = {"expert/spearman": 0.2134, "expert/kendall_low": -0.01, "expert/pairs": 5822.0}
    page = page_of(report.write(workdir(tmp_path, metrics=judged)))
    for shown in ("expert/spearman0.213", "expert/kendall_low-0.010", "expert/pairs5,822"):
        assert shown in page.text


def test_values_that_are_not_finite_are_dashes_and_gaps(tmp_path):
    bad = {"i2t/R@1": float("nan"), "i2t/R@5": None, "i2t/R@10": float("inf"), "rsum": float("nan")}
    lines = [*log(2), {"step": 300, "loss": float("nan"), "note": "text", "flag": True}]
    lines += [{"step": float("nan"), "loss": 1.0}, {"loss": 1.0}]
    folder = workdir(tmp_path, lines, metrics=bad, oracle={**metrics(0.0), "i2t/R@5": 0.0})
    text = report.write(folder).read_text()
    page = Page(text)
    # What is not known is a dash; what is no number is said to be none.
    assert "Image → textNaN–∞––" in page.text
    assert "rsumNaN" in page.text
    assert "1 logged values are not finite and left out." in page.text
    drawn = [value for tag, a in page.tags for key, value in a.items() if key in ("d", "cx", "cy")]
    assert drawn
    assert not re.search(r"nan|inf", " ".join(drawn))
    assert "flag" not in text


@pytest.mark.parametrize(
    ("tail", "warned"),
    [([], False), (['{"step": 700, "lo'], False), (['{"st', {"step": 700}], True), (["3"], False)],
)
def test_a_line_cut_short_is_left_out(tmp_path, tail, warned):
    folder = workdir(tmp_path, [*log(), *tail])
    assert page_of(report.write(folder)).count("figure") == 7
    assert ("1 line(s) of metrics.jsonl" in (folder / "report.html").read_text()) == warned


def test_a_step_logged_twice_counts_once(tmp_path):
    folder = workdir(tmp_path, [{"step": s, "loss": v} for s, v in ((2, 8), (1, 9), (2, 7))])
    page = page_of(report.write(folder))
    assert page.count("circle") == 2
    assert "loss at step 2: 7" in page.text


@pytest.mark.parametrize("content", [None, "", '{"metrics"'])
def test_a_workdir_without_a_report_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(report.ReportError, match=r"report\.json"):
        report.write(tmp_path)
    with pytest.raises(SystemExit, match=r"report: .*report\.json"):
        command.main([str(tmp_path)])


@pytest.mark.parametrize(
    "line",
    [
        [(5.0, 3.0)],
        [(0.0, 0.0), (1.0, 0.0)],
        [(1.0, -2e-9), (2.0, 3e-9)],
        [(1.0, 1.0), (2.0, 1.0 + 2**-52)],
        [(float(step), step**2 / 7) for step in range(10_000)],
        [(1.0, -1e12), (1e7, 1e12)],
    ],
)
def test_a_chart_draws_inside_its_frame(line):
    drawn = charts.chart("title", {"a": line, "b": line[:1]}, marked=line[0][0])
    Page(drawn)
    path = re.search(r'class="line c0" d="M([^"]+)"', drawn)[1]
    points = np.array([[float(value) for value in pair.split()] for pair in path.split("L")])
    assert len(points) <= 400
    assert (points[:, 0] >= 42).all()
    assert (points[:, 0] <= 348).all()
    assert (points[:, 1] >= 8).all()
    assert (points[:, 1] <= 178).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_a_thumbnail_is_a_small_upright_jpeg(mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    uri = report.thumbnail(picture((300, 200), mode if mode != "LA" else "L", exif=exif), 64)
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as made:
        assert (made.format, made.mode, made.size) == ("JPEG", "RGB", (43, 64))


def test_a_transparent_picture_lies_on_white():
    encoded = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(encoded, "PNG")
    data = base64.b64decode(report.thumbnail(encoded.getvalue()).split(",")[1])
    with Image.open(io.BytesIO(data)) as made:
        assert made.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("data", [b"", b"not a picture", picture()[:60]])
def test_what_is_no_picture_is_an_error(data):
    with pytest.raises(report.ReportError, match="not a picture"):
        report.thumbnail(data)


def test_the_page_says_what_was_trained(tmp_path):
    config = {
        "model": {"image": {"backbone": "small_resnet"}},
        "objective": {
            "triplet": {"weight": 0.0, "margin": 0.2},
            "infonce": {"weight": 1.0, "temperature": 0.05},
        },
        "train": {"epochs": 3.0, "steps": 120},
    }
    text = page_of(report.write(workdir(tmp_path, config=config))).text
    facts = text[: text.index("Results")]
    for shown in ("vse_jax on shapes", "Backbonesmall_resnet", "temperature0.05", "Steps120"):
        assert shown in facts
    for left_out in ("Triplet", "Epochs", "Started from"):
        assert left_out not in facts


def test_a_report_says_which_network_and_objective_it_is_of(tmp_path):
    triplet = {"weight": 1.0, "negatives": "hardest", "margin": 0.185, "semantic": 0.025}
    config = {
        "model": {"network": "saf", "text": {"backbone": "bert"}},
        "objective": {"triplet": triplet},
        "train": {"start_from": "runs/before"},
    }
    text = page_of(report.write(workdir(tmp_path, config=config))).text
    for shown in ("Networksaf", "read bybert", "by meaning0.025", "Started fromruns/before"):
        assert shown in text[: text.index("Results")]
    triplet["semantic"] = 0.0
    text = page_of(report.write(workdir(tmp_path, config=config))).text
    assert "by meaning" not in text[: text.index("Results")]


def test_distributions_are_drawn_where_they_are_known(tmp_path):
    assert "<h2>Distributions" not in report.render(report.read(workdir(tmp_path)))
    scores = {"measure": "distance", "edges": [0.0, 0.5, 1.0, 1.5]}
    scores |= {"right": [80.0, 20.0, 0.0], "wrong": [0.0, 10.0, 90.0]}
    found = metrics(20.0) | {f"codes/asymmetric/i2t/{m}": 41.7 for m in tables.MEASURES}
    usage = [2.5, 1.0, 0.5, 0.0]
    folder = workdir(tmp_path, scores=scores, code_usage=usage, metrics=found)
    page = report.render(report.read(folder))
    section = page.split("<h2>Distributions")[1].split("</section>")[0]
    assert "Distance of right and wrong pairs" in section
    # The middles of the bins.
    assert "<title>wrong at distance 1.25: 90</title>" in section
    assert "<title>use at rank 1: 2.5</title>" in section
    assert re.search(r"from asymmetric codes</th><td>41\.7", page)


def aligned(text, image):
    boxes = [[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 0.875], [0.0, 0.0, 1.0, 1.0]]
    scores = [1.25, float("nan"), -2.0]
    segments = [
        {"text": f"{text} {number}", "box": box, "score": score}
        for number, (box, score) in enumerate(zip(boxes, scores, strict=True))
    ]
    return {"image": image, "name": text, "segments": segments}


def test_words_have_the_colours_of_their_boxes(tmp_path):
    found = {"alignments": [aligned("a dog", report.thumbnail(picture()))]}
    text = report.write(workdir(tmp_path), found).read_text()
    assert "<h2>Which words go with which region" in text
    section = Page(text.split("Which words go with which region</h2>")[1].split("</section>")[0])
    assert "a dog 01.2 a dog 1– a dog 2-2.0" in section.text
    words = [a["style"] for tag, a in section.tags if tag == "span" and a["class"] == "words"]
    drawn = [a for tag, a in section.tags if tag == "rect" and "style" in a]
    assert words[0] == words[2] != words[1]
    # The small box last, on the others.
    assert [a["style"] for a in drawn] == [words[0], words[2], words[1]]
    place = {name: float(drawn[2][name]) for name in ("x", "y", "width", "height")}
    assert place == {"x": 0.5, "y": 0.25, "width": 0.375, "height": 0.5}
    assert "Which words" not in report.write(tmp_path, {"alignments": []}).read_text()


def test_aligned_captions_are_escaped_and_load_nothing(tmp_path):
    found = {"alignments": [aligned(EVIL, "https://example.com/spy.gif")]}
    text = report.write(workdir(tmp_path), found).read_text()
    page = Page(text)
    assert page.links == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.count("span", "missing") == 1
    assert not re.search(r"https?:|url\(|@import|file:", text)


def told(names, pictures, right, confused):
    return {"names": names, "pictures": pictures, "right": right, "confused": confused}


def test_classes_and_maps_have_a_table_with_plain_names(tmp_path):
    found = {"classify/accuracy": 41.54, "classify/per_class": 40.0, "classify/top5": 88.5}
    found |= {"classify/cross_entropy": 3.1284, "maps/agreement": 0.99471, "maps/other": 1.0}
    found |= {"maps/class_pointing": float("nan"), "maps/chance_pointing": 12.3}
    page = page_of(report.write(workdir(tmp_path, metrics=found)))
    for part in (
        "41.5%classes told right",
        "0.995maps agree",
        "Classes told right41.5%Mean over the classes40.0%Right class among the first five88.5%",
        "Cross-entropy, nats a picture3.128Map of the true class is highest on the thingNaN",
        "A cell drawn at random is on the thing12.3%",
        "Agreement of the maps of the class told and the caption written0.995",
        # What nobody has a name for is still shown.
        "maps/other1.0",
    ):
        assert part in page.text
    assert "classify/" not in page.text
    assert "<h2>Classes" not in (tmp_path / "report.html").read_text()


def test_few_classes_are_confused_in_a_coloured_table(tmp_path):
    classification = told(["cat", EVIL, "none"], [4, 5, 0], [3, 5, 0], [[0, 1, 1]])
    text = report.write(workdir(tmp_path, classification=classification)).read_text()
    page = Page(text)
    for part in ("cat475.0%", "5100.0%", "1 more classes have no picture in this split"):
        assert part in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    cells = re.findall(r'<td class=(right|wrong)(?: style="--share:([0-9.]+)")?>(\d*)</td>', text)
    assert cells == [
        ("right", "0.450", "3"), ("wrong", "0.150", "1"), ("wrong", "", ""),
        ("wrong", "", ""), ("right", "0.600", "5"), ("wrong", "", ""),
        ("wrong", "", ""), ("wrong", "", ""), ("right", "", ""),
    ]  # fmt: skip
    assert page.count("details") == 1


def test_of_many_classes_the_most_frequent_confusions_are_listed(tmp_path):
    names = [f"bird {number}" for number in range(200)]
    confused = [[c, c + 1, 40 - c] for c in range(35)]
    classification = told(names, [50] * 200, [10] * 200, confused)
    page = page_of(report.write(workdir(tmp_path, classification=classification)))
    assert "bird 0 → bird 1 40 of 50" in page.text
    assert "bird 29 → bird 30 11 of 50" in page.text
    assert "bird 30 → bird 31" not in page.text
    assert "And 5 pairs more." in page.text
    assert "Each of the 200 classes" in page.text
    assert page.count("table", "confusion") == 0
    classification["confused"] = []
    page = page_of(report.write(workdir(tmp_path, classification=classification)))
    assert "Every picture was told right." in page.text


def looks(text, image):
    right = {"name": text, "probability": 0.9312, "true": text}
    wrong = {"name": text, "probability": float("nan"), "true": "a cat"}
    unknown = {"name": text, "probability": 0.5}
    return [
        {"name": text, "class": right, "class_image": image, "written": f"{text} runs",
         "caption_image": image, "agreement": 0.8125},
        {"name": text, "class": wrong, "class_image": image, "agreement": None},
        {"name": text, "class": unknown, "class_image": image, "agreement": None},
        {"name": text, "written": f"{text} sleeps", "caption_image": image},
    ]  # fmt: skip


def test_where_the_model_looks_is_shown(tmp_path):
    found = {"looks": looks("a dog", report.thumbnail(picture()))}
    text = report.write(workdir(tmp_path), found).read_text()
    section = Page(text.split("<h2>Where the model looks</h2>")[1].split("</section>")[0])
    for part in ("✓a dog 93.1%“a dog runs”maps agree 0.812", "✗a dog – it is a cat", "a dog 50.0%"):
        assert part in section.text
    assert section.count("article", "look") == 4
    assert section.count("span", "tick") == section.count("span", "cross") == 1
    described = [attributes["alt"] for tag, attributes in section.tags if tag == "img"]
    assert described[:2] == [
        "a dog: where the model looks for the class a dog",
        "a dog: where the model looks for the caption a dog runs",
    ]
    assert len(described) == 5
    assert "Where the model" not in report.write(tmp_path, {"looks": []}).read_text()


def test_a_caption_without_a_map_is_said_to_have_none(tmp_path):
    found = looks("a dog", report.thumbnail(picture()))[0]
    del found["caption_image"]
    text = report.write(workdir(tmp_path), {"looks": [found]}).read_text()
    section = text.split("<h2>Where the model looks</h2>")[1].split("</section>")[0]
    assert section.count("<img") == 1
    assert "a dog runs" in section
    assert "no content word in it, so no map" in section


def test_looks_are_escaped_and_load_nothing(tmp_path):
    text = report.write(
        workdir(tmp_path), {"looks": looks(EVIL, "https://example.com/spy.gif")}
    ).read_text()
    page = Page(text)
    assert page.links == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.count("span", "missing") == 5
    assert not re.search(r"https?:|url\(|@import|file:", text)


def test_accuracy_and_cost_are_drawn_with_what_they_are(tmp_path):
    lines = [
        {"step": s, "validation/classify/accuracy": 10.0 * s, "validation/classify/per_class": 9.0,
         "validation/cost": 3.0 / s, "validation/classify/cross_entropy": 2.0,
         "classification/loss_per_picture": 1.0 / s}
        for s in (1, 2)
    ]  # fmt: skip
    text = page_of(report.write(workdir(tmp_path, lines))).text
    for part in (
        "Validation, classes told right, % accuracy 20per class 9",
        "Cross-entropy of classes, nats a picture training 0.5validation 2",
        "Validation cost cost 1.5",
    ):
        assert part.replace(" ", "") in text.replace(" ", "")


def test_a_report_says_what_a_model_of_two_tasks_is_taught(tmp_path):
    weights = {"classification": 1.0, "generation": 0.2, "disagreement": 0.5}
    config = {
        "model": {"network": "cam", "dimension": 256, "captioner": {"cell": "lstm"}},
        "objective": {name: {"weight": weight} for name, weight in weights.items()},
    }
    config["objective"]["disagreement"]["kind"] = "kl"
    text = page_of(report.write(workdir(tmp_path, config=config))).text
    facts = text[: text.index("Results")]
    for shown in ("Dimension256", "written bylstm", "Classes, weight1", "Disagreement, bykl"):
        assert shown in facts
    for name in ("generation", "disagreement"):
        config["objective"][name]["weight"] = 0.0
    text = page_of(report.write(workdir(tmp_path, config=config))).text
    for left_out in ("Captions", "Disagreement"):
        assert left_out not in text[: text.index("Results")]
