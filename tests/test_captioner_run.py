"""A model that writes captions, from its config to its report."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import trained_once
from PIL import Image

import vse_jax
from vse_jax import (
    align,
    caption,
    caption_evaluation,
    experiment,
    inputs,
    measuring,
    parallel,
    train,
    train_step,
)
from vse_jax.caption_writer import CaptionWriter, special_tokens
from vse_jax.captioning.captions import Captions
from vse_jax.config import ConfigError
from vse_jax.config_checks import validate
from vse_jax.data.split import DataError
from vse_jax.data.tokenizer import SPECIAL
from vse_jax.evaluators import captioning
from vse_jax.evaluators.blocks import EvaluationError
from vse_jax.workdir import WorkdirError


@pytest.fixture(scope="module")
def config(preset, tiny_shapes):
    config = preset("shapes", "multimodal_rnn")
    tiny = tiny_shapes.copy_and_resolve_references()
    config.data, config.evaluate = tiny.data, tiny.evaluate
    config.data.tokenizer = "dvsa"
    for name in ("batch_size", "log_every", "ema"):
        config.train[name] = tiny.train[name]
    config.train.steps = 8
    config.train.learning_rate = 2e-3
    config.train.validate_every = 0.1
    config.model.hidden, config.model.text.words = 16, 8
    config.evaluate.beams = 3
    return config


@pytest.fixture(scope="module")
def workdir(config, shared_folder):
    """A workdir of eight steps; for reading only."""
    return trained_once(config, shared_folder / "captioner")


@pytest.fixture(scope="module")
def written(workdir, opened):
    """The run, its best state, the pictures of its test split, variables, what writes captions."""
    run, state = opened(workdir)
    pictures = caption_evaluation.pictures_of(run, state, "test")
    variables = run.encoder.variables(train_step.evaluation_params(state), state.batch_stats)
    return run, state, pictures, variables, CaptionWriter(run.built.model, run.devices)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def step_by_step(run, state, picture, words):
    """log p of each of these words after <start>, by the decoder's own steps."""
    model = run.built.model
    params = jax.tree.map(jnp.asarray, train_step.evaluation_params(state))
    variables = {"params": params, "batch_stats": state.batch_stats}
    carried = model.apply(variables, jnp.asarray(picture[None]), method=model.begin_captions)
    found, last = [], SPECIAL.index("<start>")
    for word in words:
        token = jnp.asarray([last], jnp.int32)
        carried, logits = model.apply(variables, carried, token, method=model.next_word)
        found.append(float(jax.nn.log_softmax(logits[0])[word]))
        last = word
    return found


def test_perplexity_is_that_of_each_word_after_those_before_it(written):
    run, state, pictures, *_ = written
    examples = run.examples["test"]
    total, count = 0.0, 0
    for number, picture in enumerate(examples.split.caption_image):
        words = examples.tokens[number][examples.token_mask[number]][1:].tolist()
        if number % 16 == 0:
            total += sum(step_by_step(run, state, pictures[picture], words))
            count += len(words)
    # Some of the captions by themselves, all of them by the costs.
    some = np.arange(0, len(examples.tokens), 16)
    costs = written[4].costs(
        written[3],
        pictures[examples.split.caption_image[some]],
        examples.tokens[some],
        examples.token_mask[some],
        batch_size=3,
    )
    np.testing.assert_allclose(costs.sum(), -total, rtol=1e-5)
    every = written[4].costs(
        written[3],
        pictures[examples.split.caption_image],
        examples.tokens,
        examples.token_mask,
    )
    np.testing.assert_allclose(every[some], costs, rtol=1e-5)
    expected = np.exp(every.sum() / (examples.token_mask.sum() - len(every)))
    assert caption_evaluation.perplexity(run, state, "test") == pytest.approx(expected, rel=1e-5)


def test_a_perplexity_beyond_all_numbers_is_told(written):
    run, state, *_ = written
    params = train_step.evaluation_params(state)
    output = params["captioner"]["weight_oh"] + 1e6 * np.sign(params["captioner"]["weight_oh"])
    beyond = {**params, "captioner": {**params["captioner"], "weight_oh": output}}
    with pytest.raises(EvaluationError, match=r"a word of the test captions costs .* nats"):
        caption_evaluation.perplexity(run, state.replace(params=beyond, ema=None), "test")


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_the_search_in_any_batches(written, beams):
    run, state, pictures, variables, writer = written
    special = special_tokens(run.tokenizer)
    several = writer.best(variables, pictures, special, 7, beams=beams, batch_size=5)
    one = writer.best(variables, pictures[6:7], special, 7, beams=beams)
    np.testing.assert_array_equal(several.tokens[6:7], one.tokens)
    assert several.tokens.shape == (16, 1, 7)
    for row, picture in ((0, pictures[0]), (6, pictures[6])):
        words = several.tokens[row, 0, : several.lengths[row, 0]].tolist()
        assert not set(words) & set(special.banned)
        expected = sum(step_by_step(run, state, picture, words))
        np.testing.assert_allclose(several.log_probabilities[row, 0], expected, rtol=1e-5)


def test_the_report_has_what_the_evaluator_finds_of_what_was_written(written, workdir):
    run, state, *_ = written
    split, metrics = run.dataset.splits["test"], report_of(workdir)["metrics"]
    references = [split.captions_of(picture) for picture in range(len(split.images))]
    assert [len(own) for own in references] == [5] * 16
    for prefix, beams in (("caption/", 3), ("caption/greedy/", 1)):
        sentences = caption_evaluation.write(run, state, "test", beams).sentences
        expected = captioning.evaluate(sentences, references, java=False)
        assert {key: metrics[prefix + key.split("/")[1]] for key in expected} == pytest.approx(
            expected
        )
    training = run.dataset.splits["train"]
    shown = [caption_evaluation.pictures_of(run, state, name) for name in ("test", "train")]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in shown]
    nearest = np.argmax(unit[0] @ unit[1].T, axis=1)
    expected = captioning.evaluate(
        [training.captions_of(int(row))[0] for row in nearest], references, java=False
    )
    assert metrics["caption/nearest/BLEU-1"] == pytest.approx(expected["caption/BLEU-1"])
    assert metrics["caption/vocabulary"] == run.tokenizer.vocabulary - len(SPECIAL)
    assert metrics["caption/perplexity"] == pytest.approx(
        caption_evaluation.perplexity(run, state, "test")
    )


def test_the_best_checkpoint_has_the_least_perplexity(workdir, written):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {
        row["step"]: row["validation/caption/perplexity"]
        for row in rows
        if "validation/caption/perplexity" in row
    }
    assert len(found) > 1
    assert int(written[1].step) == min(found, key=found.get)


def test_the_page_shows_pictures_with_both_kinds_of_captions(workdir, written):
    page = (workdir / "report.html").read_text()
    split = written[0].dataset.splits["test"]
    assert "What was written of pictures" in page
    assert page.count("data:image/jpeg") == 3
    assert all(text in page for text in split.captions_of(0))
    sentence = caption_evaluation.write(*written[:2], "test", 3).sentences[0]
    assert f"“{sentence}”" in page


def test_a_workdir_is_measured_again_and_not_with_others(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)
    before = report_of(workdir)["metrics"]
    again = measuring.again(workdir)
    assert again == pytest.approx(before)
    with pytest.raises(WorkdirError, match="writes captions or tells classes; only models that"):
        measuring.together([workdir, workdir], tmp_path / "out")


def test_words_start_as_frequent_as_they_are(written):
    run = written[0]
    start = run.built.variables["params"]["captioner"]["bias_o"]
    examples = run.examples["train"]
    targets = examples.tokens[:, 1:][examples.token_mask[:, 1:]]
    counts = np.bincount(targets, minlength=run.tokenizer.vocabulary)
    assert (counts == 0).any()
    expected = np.log(np.maximum(counts, 1) / np.maximum(counts, 1).sum())
    np.testing.assert_allclose(start, expected, rtol=1e-5)


def test_every_number_of_devices_writes_the_same(written):
    run, _, pictures, variables, writer = written
    special = special_tokens(run.tokenizer)
    four = parallel.Devices("shard_map", tuple(jax.devices()[:4]))
    other = CaptionWriter(run.built.model, four)
    host = jax.device_get(variables)
    found = other.best(four.place(host), pictures, special, 7, beams=3, batch_size=8)
    expected = writer.best(variables, pictures, special, 7, beams=3)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert isinstance(found, Captions)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("objective.triplet.weight", 1.0, "only writes captions: set it to 0"),
        ("objective.leap.weight", 1.0, "only writes captions: set it to 0"),
        ("objective.generation.weight", 0.0, "nothing else teaches the network"),
        ("model.text.backbone", "bert", "reads no sentences and has words of its own"),
        ("model.captioner.cell", "gru", "'lstm' or 'rnn'"),
        ("model.image.features", "boxes", "is shown a picture as a whole: set it to 'pooled'"),
        ("evaluate.beams", 0, r"must lie in \[1, 1000\]"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(config, field, value, told):
    config = config.copy_and_resolve_references()
    *parents, leaf = field.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[leaf] = value
    with pytest.raises(ConfigError, match=told):
        validate(config)


def test_without_its_package_the_figures_are_said_to_be_left_out(tmp_path, config, monkeypatch):
    monkeypatch.setattr(caption_evaluation, "can_measure", lambda: False)
    config = config.copy_and_resolve_references()
    config.train.steps = 1
    assert train.train(config, tmp_path / "run")
    report = report_of(tmp_path / "run")
    assert not [name for name in report["metrics"] if "BLEU" in name]
    assert any("need pip install 'vse-jax[caption]'" in text for text in report["warnings"])


@pytest.fixture(scope="module")
def photos(written, tmp_path_factory):
    """Paths of the first pictures of the test split."""
    folder, split = tmp_path_factory.mktemp("photos"), written[0].dataset.splits["test"]
    for number, data in enumerate(split.read([0, 1, 2])):
        (folder / f"{number}.jpg").write_bytes(data)
    return [str(folder / f"{number}.jpg") for number in range(3)]


def test_the_api_writes_what_the_evaluation_does(workdir, written, photos):
    model = vse_jax.load(workdir)
    expected = caption_evaluation.write(*written[:2], "test", 3)
    found = model.caption(photos, batch_size=2)
    assert [[one.text for one in own] for own in found] == [
        [text] for text in expected.sentences[:3]
    ]
    # Pillow resizes for the API, TensorFlow in training: a pixel may be rounded otherwise.
    scores = [own[0].log_probability for own in found]
    np.testing.assert_allclose(scores, expected.captions.log_probabilities[:3, 0], atol=1e-2)
    several = model.caption(photos, n_best=3, length_power=1.0)
    assert all(len({one.text for one in own}) == 3 for own in several)
    assert all(own[0].score >= own[1].score >= own[2].score for own in several)
    assert model.caption([]) == []


def test_what_is_drawn_depends_on_the_seed_and_the_picture_alone(workdir, photos):
    model = vse_jax.load(workdir)

    def texts(**options):
        return [[one.text for one in own] for own in model.caption(photos, **options)]

    drawn = texts(temperature=1.0, samples=4, seed=3)
    assert drawn == texts(temperature=1.0, samples=4, seed=3, batch_size=1)
    assert drawn != texts(temperature=1.0, samples=4, seed=4)
    assert len({text for own in drawn for text in own}) > 4
    rest = [
        [one.text for one in own]
        for own in model.caption(photos[1:], temperature=1.0, samples=4, seed=3, first=1)
    ]
    assert rest == drawn[1:]
    assert texts(temperature=0.0) == texts(temperature=1.0, top_k=1) == texts(beams=1)


def test_the_command_writes_a_line_or_an_object_for_each_caption(workdir, photos, capsys):
    caption.main([f"--workdir={workdir}", "--n_best=2", *photos[:2]])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    found = vse_jax.load(workdir).caption(photos[:2], n_best=2)
    expected = [(path, own) for path, both in zip(photos, found, strict=False) for own in both]
    assert lines == [[path, f"{own.log_probability:.3f}", own.text] for path, own in expected]
    # By their mean over the tokens they may come in another order, of which the score tells.
    caption.main([f"--workdir={workdir}", "--n_best=3", "--length_power=1", *photos])
    told = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    found = vse_jax.load(workdir).caption(photos, n_best=3, length_power=1.0)
    assert told == [
        f"{own.log_probability:.3f} (ranked by {own.score:.3f})" for three in found for own in three
    ]
    caption.main([f"--workdir={workdir}", "--json", photos[2]])
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"image", "text", "log_probability", "score"}
    assert told["image"] == photos[2]


def test_regions_are_written_of_as_pictures_of_their_own(workdir, photos, tmp_path, capsys):
    boxes = [[[0.0, 0.0, 0.5, 1.0], [0.25, 0.25, 1.0, 0.75]], [[0.0, 0.0, 1.0, 1.0]]]
    model = vse_jax.load(workdir)
    crops = []
    for path, own in zip(photos, boxes, strict=False):
        with Image.open(path) as picture:
            side = picture.width
            for y0, x0, y1, x1 in own:
                corners = [round(side * share) for share in (x0, y0, x1, y1)]
                crops.append(np.asarray(picture.convert("RGB").crop(corners)))
    expected = model.caption(crops)
    assert model.caption(photos[:2], boxes=boxes) == expected
    with pytest.raises(DataError, match="boxes of 2 pictures, but the pictures are 3"):
        model.caption(photos, boxes=boxes)
    with pytest.raises(TypeError, match="a list of pictures"):
        model.caption(photos[0], boxes=boxes)
    path = tmp_path / "boxes.jsonl"
    lines = [{"image": f"{number}.jpg", "boxes": own} for number, own in enumerate(boxes)]
    path.write_text("\n".join(map(json.dumps, lines)))
    caption.main([f"--workdir={workdir}", f"--boxes={path}", *photos[:2]])
    printed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in printed] == [
        f"{photos[0]} [0, 0, 0.5, 1]",
        f"{photos[0]} [0.25, 0.25, 1, 0.75]",
        f"{photos[1]} [0, 0, 1, 1]",
    ]
    assert [line[2] for line in printed] == [own[0].text for own in expected]
    caption.main([f"--workdir={workdir}", "--json", f"--boxes={boxes[0]}", photos[0]])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["box"] for one in told] == boxes[0]


@pytest.fixture(scope="module")
def snippets(written, shared_folder):
    """A file of what is said of the left and the right half of some training pictures."""
    lines = [
        {"image": image, "box": [0.0, x, 1.0, x + 0.5], "snippet": "a red ring"}
        for image in written[0].dataset.splits["train"].images[:12]
        for x in (0.0, 0.5)
    ]
    path = shared_folder / "snippets.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_captioner_learns_what_is_said_of_regions(config, snippets, tmp_path, monkeypatch):
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)
    config = config.copy_and_resolve_references()
    config.data.snippets = str(snippets)
    config.train.steps, config.train.learning_rate, config.train.ema = 40, 3e-3, 0.0
    config.train.validate_every = 100.0  # At the end: others' names are likeliest before it.
    config.train.optimizer = "adam"
    config.model.captioner.dropout = 0.0
    assert train.train(config, tmp_path / "run")
    metrics = report_of(tmp_path / "run")["metrics"]
    assert metrics["caption/vocabulary"] == 3
    # Every true name of an object has two of these words or fewer.
    assert metrics["caption/distinct"] < 10
    [half] = vse_jax.load(tmp_path / "run").caption([np.zeros((8, 4, 3), np.uint8)])
    assert half[0].text == "a red ring"
    assert metrics["caption/BLEU-1"] > 10


def test_what_a_model_aligned_is_what_a_captioner_trains_on(
    config, trained_dvsa, opened, tmp_path, monkeypatch
):
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)
    path = tmp_path / "found.jsonl"
    align.write_snippets(trained_dvsa, path)
    config = config.copy_and_resolve_references()
    config.data.snippets = str(path)
    config.train.steps = 1
    assert train.train(config, tmp_path / "run")
    run, _ = opened(tmp_path / "run")
    training = run.dataset.splits["train"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [line for line in lines if line["split"] == "train"]
    assert sorted(training.captions) == sorted(line["snippet"] for line in found)
    regions = {(line["image"], tuple(line["box"])) for line in found}
    assert len(training.images) == len(regions)
    assert {name.split("#")[0] for name in training.images} == {image for image, _ in regions}


def test_a_captioner_is_measured_on_regions_with_its_own_words(
    config, workdir, written, snippets, tmp_path, monkeypatch
):
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)
    config = config.copy_and_resolve_references()
    config.data.snippets = str(snippets)
    config.train.start_from = str(workdir)
    config.evaluate.beams = 1  # After so few steps the best of several has no words.
    metrics = measuring.untrained(config, tmp_path / "run")
    _, state, _, variables, writer = written
    run = experiment.prepare(config, tmp_path / "run")
    assert run.tokenizer.to_json() == written[0].tokenizer.to_json()
    pictures = caption_evaluation.pictures_of(run, state, "test")
    found = writer.best(variables, pictures, special_tokens(run.tokenizer), 39, beams=1)
    sentences = run.tokenizer.sentences(found.tokens[:, 0])
    said = run.dataset.splits["test"]
    references = [said.captions_of(number) for number in range(len(sentences))]
    expected = captioning.evaluate(sentences, references, java=False)
    assert metrics["caption/BLEU-1"] == pytest.approx(expected["caption/BLEU-1"])
    assert metrics["caption/BLEU-1"] > 0
    examples = run.examples["test"]
    costs = writer.costs(
        variables, pictures[said.caption_image], examples.tokens, examples.token_mask
    )
    words = examples.token_mask.sum() - len(examples.tokens)
    assert metrics["caption/perplexity"] == pytest.approx(np.exp(costs.sum() / words), rel=1e-5)
    assert not any("drawn at random" in text for text in report_of(tmp_path / "run")["warnings"])


def test_help_lists_the_flags(capsys):
    caption.main(["--help"])
    told = capsys.readouterr().out
    assert "python -m vse_jax.caption --workdir" in told
    assert all(f"--{name}" in told for name in ("beams", "length_power", "top_k", "boxes"))


def test_captions_without_a_word_are_told(written, caplog):
    run, state, *_ = written
    _, found = caption_evaluation.evaluate(run, state, "test")
    empty = sum(not sentence for sentence in found.sentences)
    assert empty
    assert f"{empty} of 16 captions have no word" in caplog.text


def test_boxes_of_a_file_are_known_by_path_or_by_name_alone(tmp_path):
    boxes = {"a/1.jpg": [[0, 0, 1, 0.5]], "2.jpg": [[0, 0, 0.5, 1]]}
    path = tmp_path / "boxes.jsonl"
    lines = [json.dumps({"image": name, "boxes": own}) for name, own in boxes.items()]
    path.write_text("\n".join(lines))
    found = inputs.boxes_given(str(path), ["x/2.jpg", "a/1.jpg", "x/2.jpg"])
    assert [own.tolist() for own in found] == [boxes["2.jpg"], boxes["a/1.jpg"], boxes["2.jpg"]]
    with pytest.raises(DataError, match=r"no boxes of b/1\.jpg; its first is of a/1\.jpg"):
        inputs.boxes_given(str(path), ["b/1.jpg"])
    with pytest.raises(DataError, match=r"knows x/2\.jpg and y/2\.jpg by one name, 2\.jpg"):
        inputs.boxes_given(str(path), ["x/2.jpg", "y/2.jpg"])


def test_what_no_caption_could_be_searched_for_with_is_told_before_training(
    config, snippets, tmp_path
):
    config = config.copy_and_resolve_references()
    config.data.max_tokens, config.evaluate.beams, config.data.snippets = 3, 14, str(snippets)
    with pytest.raises(ConfigError, match=r"'evaluate\.beams': 14 beams, but 3 words .* only 13"):
        experiment.prepare(config, tmp_path / "few", training=True)
    rare = tmp_path / "rare.jsonl"
    line = {"image": "train_00000.jpg", "box": [0, 0, 1, 1], "snippet": "seldom"}
    rare.write_text(json.dumps(line))
    config = config.copy_and_resolve_references()
    config.data.max_tokens, config.evaluate.beams, config.data.snippets = 40, 7, str(rare)
    with pytest.raises(ConfigError, match=r"'evaluate\.beams': 7 beams, but 0 words"):
        experiment.prepare(config, tmp_path / "rare", training=True)


def test_pictures_whose_captions_have_no_word_are_not_measured(written, caplog):
    run, state, *_ = written
    split = run.dataset.splits["test"]
    captions = [
        "?!" if owner == 3 else text
        for owner, text in zip(split.caption_image, split.captions, strict=True)
    ]
    splits = {**run.dataset.splits, "test": dataclasses.replace(split, captions=captions)}
    changed = dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, splits=splits))
    metrics, found = caption_evaluation.evaluate(changed, state, "test")
    assert f"is not measured: 1 ({split.images[3]})" in caplog.text
    others = [number for number in range(16) if number != 3]
    expected = captioning.evaluate(
        [found.sentences[number] for number in others],
        [split.captions_of(number) for number in others],
        java=False,
    )
    assert metrics["caption/BLEU-1"] == pytest.approx(expected["caption/BLEU-1"])


def test_mistakes_are_told_in_a_line(workdir, trained, photos, tmp_path):
    (tmp_path / "none.jpg").write_bytes(b"no picture")
    for arguments, told in (
        ([f"--workdir={trained}", *photos], "compares pictures and sentences and writes no cap"),
        ([f"--workdir={workdir}", str(tmp_path / "none.jpg")], "picture 0 .* cannot be read"),
        ([f"--workdir={workdir}", str(tmp_path / "gone.jpg")], "picture 0 .* cannot be read"),
        ([f"--workdir={workdir}", "--beams=2", "--n_best=3", *photos], "n_best is 3"),
        ([f"--workdir={workdir}", "--beams=1", "--n_best=3", *photos], "n_best is 3"),
        ([f"--workdir={workdir}", "--beams=0", *photos], "beams is 0; expected a whole number"),
        ([f"--workdir={workdir}", "--beams=1001", *photos], "beams is 1001; .* from 1 to 1000"),
        ([f"--workdir={workdir}", "--temperature=nan", *photos], "temperature is nan"),
        ([f"--workdir={workdir}", "--temperature=1", "--samples=1001", *photos], "samples is 1001"),
        ([f"--workdir={workdir}", "--temperature=1", "--n_best=2", *photos], "are of the search"),
        ([f"--workdir={workdir}", "--temperature=1", f"--seed={2**70}", *photos], "seed is"),
        ([f"--workdir={workdir}", "--length_power=5000", *photos], "length_power is 5000"),
        ([f"--workdir={workdir}", "--top_k=3", *photos], "give a temperature"),
        ([f"--workdir={workdir}", "--boxes=[[0, 0, 0, 1]]", *photos], "--boxes: box .* is not"),
        ([f"--workdir={workdir}", "--boxes=[]", *photos], "no boxes"),
        ([f"--workdir={workdir}", "--boxes=", *photos], "--boxes is empty"),
        ([f"--workdir={tmp_path}", *photos], "workdir"),
        (photos, "needs --workdir"),
        (["--bems=3", *photos], "bems"),
    ):
        with pytest.raises(SystemExit, match=told):
            caption.main(arguments)
    with pytest.raises(ValueError, match="writes captions, and reads no sentences"):
        vse_jax.load(workdir).encode_texts(["a ring"])
