"""Pretrained text towers from config to report: CLIP without any training, frozen features."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import parity
import pytest
from commands import Command
from data.test_scan_files import write
from evaluators.test_retrieval import loop_metrics
from small_flickr8k import write_flickr8k, write_weights
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import vse_jax
from vse_jax import (
    assembly,
    evaluation,
    experiment,
    frozen_features,
    measuring,
    pace,
    train,
    workdir,
)
from vse_jax.checkpoint import CheckpointError
from vse_jax.config import ConfigError
from vse_jax.data import pipeline, tokenizer
from vse_jax.data.split import DataError
from vse_jax.evaluators import retrieval
from vse_jax.models.backbones.weights import WeightsError
from vse_jax.optimizer import flatten
from vse_jax.workdir import WorkdirError

BLOCKS = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SIZE = 32


def write_tokenizer(folder, words, opening, closing, pad):
    """Of whole words, in the model's own numbers: opening if any, closing, padding, words."""
    names = list(dict.fromkeys(filter(None, [pad, opening, closing, "[UNK]", "[MASK]", *words])))
    made = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [token for token in (opening, closing) if token]
    made.add_special_tokens([pad, *around, "[UNK]", "[MASK]"])
    made.post_processor = processors.TemplateProcessing(
        single=f"{opening} $A {closing}".strip(),
        special_tokens=[(token, names.index(token)) for token in around],
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    return len(names), names.index(closing)


def write_clip(folder):
    """A small CLIP drawn at random; the model of transformers."""
    words = "a red green blue square circle triangle left of right above below the small large"
    count, closing = write_tokenizer(folder, words.split(), "<start>", "<end>", "<end>")
    library = parity.transformers()
    text = {"vocab_size": count, "max_position_embeddings": 40, "eos_token_id": closing}
    vision = {"image_size": SIZE, "patch_size": 8}
    model = library.CLIPModel(
        library.CLIPConfig(
            text_config=BLOCKS | text | {"pad_token_id": closing, "bos_token_id": 1},
            vision_config=BLOCKS | vision,
            projection_dim=12,
        )
    )
    parity.saved(parity.randomize(model), folder)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a small CLIP, and the model of transformers."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, write_clip(folder)


@pytest.fixture
def pretrained(preset, tiny_shapes):
    """(system, folder of weights) -> its config on a small `shapes`."""

    def made(system, folder):
        config = preset("shapes", system)
        config.data.data_dir = tiny_shapes.data.data_dir
        config.data.shapes_sizes = tiny_shapes.data.shapes_sizes
        config.data.image_size = SIZE
        config.data.max_tokens = 40
        config.model.image.weights = config.model.text.weights = str(folder)
        config.evaluate.batch_size = 16
        config.evaluate.queries = 3
        config.train.steps, config.train.batch_size = 2, 16
        return config

    return made


@pytest.fixture
def config(pretrained, clip):
    return pretrained("clip", clip[0])


def shown_to(run, mean, std):
    """The test pictures as a tower of PyTorch is given them."""
    batches = list(pipeline.image_batches(run.examples["test"], batch_size=16))
    pixels = np.concatenate([b["image"][b["weight"] > 0] for b in batches]).astype(np.float32)
    pixels = (pixels / 255 - np.float32(mean)) / np.float32(std)
    return parity.torch().from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.mark.slow
@pytest.mark.torch
def test_clip_is_measured_without_training_then_trained(config, clip, tmp_path):
    """Its figures are those of transformers' scores; it loads; training goes on from it."""
    torch, folder = parity.torch(), tmp_path / "run"
    metrics = measuring.untrained(config, folder, "the command")
    report = json.loads((folder / "report.json").read_text())
    assert (report["step"], report["command"]) == (0, "the command")
    assert not any("random" in warning for warning in report["warnings"])
    assert report["config"]["model"]["dimension"] == 12

    run = experiment.prepare(config, folder)
    assert not run.built.drawn
    split = run.dataset.splits["test"]
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = shown_to(run, mean, std)
    tokens, mask = run.tokenizer.tokenize(split.captions)
    with torch.no_grad():
        seen = clip[1].visual_projection(clip[1].vision_model(pixels).pooler_output)
        read = clip[1].text_model(
            torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask)
        )
        read = clip[1].text_projection(read.pooler_output)
        seen, read = (x / x.norm(dim=1, keepdim=True) for x in (seen, read))
        scores = (seen @ read.T).numpy()
    embeddings = evaluation.encode(
        run, evaluation.best_state(run, train.initial_state(run)), "test"
    )
    np.testing.assert_allclose(embeddings.scores(), scores, atol=1e-5)
    expected = retrieval.evaluate_scores("all_16", embeddings.scores(), split.caption_image)
    assert {k: metrics[k] for k in expected} == pytest.approx(expected)

    model = vse_jax.load(folder)
    assert model.step == 0
    np.testing.assert_allclose(
        model.encode_texts(split.captions[:3]), embeddings.captions[:3], atol=1e-5
    )
    assert measuring.again(folder) == metrics
    assert measuring.untrained(config, folder) == metrics
    assert train.train(config, folder)
    assert vse_jax.load(folder).step == 2


@pytest.mark.torch
def test_siglip_is_measured_without_training(pretrained, tmp_path):
    """By the scores of transformers, whose temperature and bias rank nothing otherwise."""
    torch, library, folder = parity.torch(), parity.transformers(), tmp_path / "siglip"
    folder.mkdir()
    words = "a red green blue square circle triangle left of right above below the small large"
    count, pad = write_tokenizer(folder, words.split(), "", "</s>", "</s>")
    text = BLOCKS | {"vocab_size": count, "max_position_embeddings": 40, "pad_token_id": pad}
    vision = BLOCKS | {"image_size": SIZE, "patch_size": 8}
    model = library.SiglipModel(library.SiglipConfig(text_config=text, vision_config=vision))
    parity.saved(parity.randomize(model), folder)

    config = pretrained("siglip", folder)
    metrics = measuring.untrained(config, tmp_path / "run")
    run = experiment.prepare(config, tmp_path / "run")
    assert not run.built.drawn
    split = run.dataset.splits["test"]
    # Whole words, lower case, by the file's own tokenizer; padded to what the tower reads.
    known = Tokenizer.from_file(str(folder / "tokenizer.json"))
    known.enable_padding(pad_id=pad, pad_token="</s>", length=40)
    ids = [one.ids for one in known.encode_batch([line.lower() for line in split.captions])]
    with torch.no_grad():
        scores = model(torch.tensor(ids), shown_to(run, [0.5] * 3, [0.5] * 3)).logits_per_text.T
        scores = ((scores - model.logit_bias) / model.logit_scale.exp()).numpy()
    state = evaluation.best_state(run, train.initial_state(run))
    found = evaluation.encode(run, state, "test").scores()
    np.testing.assert_allclose(found, scores, atol=1e-5)
    assert len(np.unique(scores.round(3))) > 100
    expected = retrieval.evaluate_scores("all_16", scores, split.caption_image)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_towers_without_a_common_space_are_refused(config):
    config = config.copy_and_resolve_references()
    config.model.image.features = "grid"
    config.model.image.weights = config.model.text.weights
    config.model.text.features = "words"
    assert assembly.with_width_of_towers(config).model.dimension == 24
    config.model.image.features = "pooled"
    with pytest.raises(ConfigError, match=r"pictures have 12 channels .* sentences 24"):
        assembly.with_width_of_towers(config)


@pytest.fixture
def features(config, preset, tmp_path):
    """Width -> the config of CLIP's sentences over features of it, in the layout of SCAN."""

    def made(width):
        folder = tmp_path / "precomp"
        for seed, (stem, count) in enumerate((("train", 8), ("dev", 2), ("test", 3))):
            rows = np.random.default_rng(seed).normal(size=(count, 1, width)).astype(np.float32)
            # Each of 5 captions has other words.
            lines = [
                "a red square",
                "a blue circle",
                "the small triangle",
                "large",
                "left of right",
            ]
            write(folder, stem, rows, [f"{line} above" for line in lines for _ in range(count)])
        found = preset("custom", f"{folder},clip")
        found.data.data_dir = str(tmp_path / "prepared")
        found.data.max_tokens = 40
        found.model.text.weights = config.model.text.weights
        found.evaluate = config.evaluate
        found.train = config.train
        return found

    return made


@pytest.mark.torch
def test_features_of_clip_are_measured_without_training(features, clip, tmp_path):
    """As transformers compares its sentences with them; the width is that of the projection."""
    torch, folder = parity.torch(), tmp_path / "run"
    metrics = measuring.untrained(features(12), folder)
    report = json.loads((folder / "report.json").read_text())
    assert report["config"]["model"]["dimension"] == 12
    assert not any("random" in warning for warning in report["warnings"])

    seen = np.load(tmp_path / "precomp" / "test_ims.npy")[:, 0]
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    sentences = (tmp_path / "precomp" / "test_caps.txt").read_text().splitlines()
    tokens, mask = tokenizer.pretrained(str(clip[0]), 40).tokenize(sentences)
    with torch.no_grad():
        read = clip[1].text_model(
            torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask)
        )
        read = clip[1].text_projection(read.pooler_output)
        read = (read / read.norm(dim=1, keepdim=True)).numpy()
    model = vse_jax.load(folder)
    np.testing.assert_allclose(model.encode_texts(sentences), read, atol=1e-5)
    np.testing.assert_allclose(model.encode_images(list(seen[:, None])), seen, atol=1e-5)
    expected = retrieval.evaluate_scores("all_3", seen @ read.T, np.repeat(np.arange(3), 5))
    assert {k: metrics[k] for k in expected} == pytest.approx(expected)


def test_features_of_another_width_than_sentences_are_refused(features, tmp_path):
    told = (
        r"pictures have 7 channels \(features of the data\) and sentences 12 \('clip', 'pooled'\)"
    )
    with pytest.raises(ConfigError, match=told):
        experiment.prepare(features(7), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_what_is_drawn_at_random_is_told(tiny_shapes, tmp_path, caplog):
    config = tiny_shapes.copy_and_resolve_references()
    measuring.untrained(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "parameters are as drawn at random, such as 'image/" in report["warnings"][0]
    assert report["warnings"][0] in caplog.text


def write_bert(folder):
    """A small BERT drawn at random, whose words are those of `write_flickr8k`; the folder."""
    words = ["A", "dog", "and", "a", "in", "the", "snow", ".", *map(str, range(10))]
    count, _ = write_tokenizer(folder, words, "[CLS]", "[SEP]", "[PAD]")
    library = parity.transformers()
    model = library.BertModel(
        library.BertConfig(vocab_size=count, max_position_embeddings=40, **BLOCKS)
    )
    return parity.saved(parity.randomize(model), folder)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def flickr8k(preset, minilm, tmp_path):
    """System -> its config on a Flickr8k of generated photos, with both pretrained sides."""
    write_flickr8k(tmp_path / "flickr8k")
    write_weights(tmp_path / "weights", seed=0)

    def made(system):
        config = preset("flickr8k", system)
        config.data.manual_dir = str(tmp_path / "flickr8k")
        config.data.data_dir = str(tmp_path / "prepared")
        config.data.image_size = SIZE
        config.model.image.weights = str(tmp_path / "weights")
        config.model.text.weights = str(minilm)
        config.model.dimension = config.model.hidden = 8
        config.train.steps, config.train.batch_size = 2, 4
        config.evaluate.batch_size = 8
        return config

    return made


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("features", ["pooled", "words"])
def test_frozen_towers_go_over_the_data_once(flickr8k, features, tmp_path, caplog):
    """What is cached of captions gives the embeddings that the sentences themselves give."""
    caplog.set_level(logging.INFO, "vse_jax")
    config = flickr8k("frozen,objective=lmh")
    config.model.text.features = features
    assert train.train(config, tmp_path / "run")
    assert "computing the features of 60 captions, once" in caplog.text
    caplog.clear()
    run = experiment.prepare(config, tmp_path / "run")
    assert "computing" not in caplog.text
    state = evaluation.best_state(run, train.initial_state(run))
    expected = evaluation.encode(run, state, "test")
    split = run.dataset.splits["test"]
    found = vse_jax.load(tmp_path / "run").encode_texts(split.captions)
    np.testing.assert_allclose(found, expected.captions, atol=1e-5)
    assert len(np.unique(found.round(4), axis=0)) > 1


@pytest.mark.torch
def test_features_are_gone_on_with_where_they_were_stopped(flickr8k, tmp_path, monkeypatch, caplog):
    """Of pictures and of captions, a batch of each later: the same bits as in one go."""
    caplog.set_level(logging.INFO, "vse_jax")
    monkeypatch.setattr(frozen_features, "SORTED", 8)
    config = flickr8k("frozen")
    config.evaluate.batch_size = 4
    expected = experiment.prepare(config, tmp_path / "run").examples
    config.data.data_dir = str(tmp_path / "stopped")
    for name, most in (("image_features", 1), ("text_features", 2)):
        real, seen = getattr(experiment.Encoder, name), []

        def stopped(self, variables, batches, real=real, seen=seen, most=most):
            for found in real(self, variables, batches):
                if len(seen) == most:
                    raise KeyboardInterrupt
                seen.append(1)
                yield found

        with monkeypatch.context() as patch:
            patch.setattr(experiment.Encoder, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                experiment.prepare(config, tmp_path / "run")
    assert "going on behind train3.jpg (picture 3 of train)" in caplog.text
    assert "going on behind caption" not in caplog.text
    monkeypatch.setattr(pace, "EVERY", -1)
    found = experiment.prepare(config, tmp_path / "run").examples
    assert "going on behind caption 7 of train" in caplog.text
    told = [int(done) for done in re.findall(r"(\d+) of 60 captions, ", caplog.text)]
    assert (told[0], told[-1]) == (16, 60)
    for name, examples in expected.items():
        np.testing.assert_array_equal(found[name].features, examples.features)
        for side in ("rows", "count"):
            one, other = (getattr(e.text_features, side) for e in (found[name], examples))
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.torch
def test_heads_first_then_a_backbone_then_heads_again(flickr8k, tmp_path, caplog):
    """Each from where the one before ended; features follow the backbone that is trained."""
    caplog.set_level(logging.INFO, "vse_jax")
    assert train.train(flickr8k("frozen"), tmp_path / "heads")

    config = flickr8k("frozen")
    config.train.freeze = (("text/reader/.*", None), ("image/backbone/.*", 0.1))
    config.model.image.keep_statistics = True
    config.train.start_from = str(tmp_path / "heads")
    caplog.clear()
    assert train.train(config, tmp_path / "backbone")
    assert "computing the features" not in caplog.text

    again = flickr8k("frozen")
    again.train.start_from = str(tmp_path / "backbone")
    caplog.clear()
    run = experiment.prepare(again, tmp_path / "again", training=True)
    assert "computing the features of 12 pictures" in caplog.text
    assert "computing the features of 60 captions" not in caplog.text
    before = vse_jax.load(tmp_path / "backbone")
    state = train.initial_state(run)
    split = run.dataset.splits["test"]
    found = evaluation.encode(run, state, "test")
    np.testing.assert_allclose(found.captions, before.encode_texts(split.captions), atol=1e-5)
    heads = experiment.prepare(workdir.read_config(tmp_path / "heads"), tmp_path / "heads")
    own = evaluation.encode(heads, evaluation.best_state(heads, train.initial_state(heads)), "test")
    assert np.abs(found.images - own.images).max() > 1e-4

    assert train.train(again, tmp_path / "again")
    trained = evaluation.encode(run, evaluation.best_state(run, state), "test")
    shutil.rmtree(tmp_path / "backbone")
    caplog.clear()
    resumed = experiment.prepare(again, tmp_path / "again", training=True)
    assert "computing" not in caplog.text
    state = evaluation.best_state(resumed, train.initial_state(resumed))
    np.testing.assert_array_equal(evaluation.encode(resumed, state, "test").images, trained.images)


@pytest.mark.slow
@pytest.mark.torch
def test_captions_are_generated_whatever_has_read_them(flickr8k, tmp_path):
    """VSRN tells captions word by word, of which a frozen reader's features are cached."""
    config = flickr8k("vsrn,text=bert")
    config.train.freeze = tuple(
        (pattern, None) if pattern == "text/reader/.*" else (pattern, factor)
        for pattern, factor in config.train.freeze
    )
    assert train.train(config, tmp_path / "run")
    rows = workdir.read_metrics(tmp_path / "run")
    name = "generation/loss_per_pair"
    found = [row[name] for row in rows if name in row]
    assert found
    assert all(loss > 0 for loss in found)


@pytest.mark.slow
@pytest.mark.torch
def test_a_pretrained_reader_learns_at_its_own_rate(flickr8k, tmp_path):
    """VSE-infinity over BERT: no step moves what 0 or None holds, a tenth moves a tenth as far."""
    config = flickr8k("vse_infinity,text=bert,objective=lseh")
    assert ("text/reader/.*", 0.1) in config.train.freeze
    block = "text/reader/layer_0"
    own = {
        "text/reader/positions": 0.0, f"{block}/mlp/fc2/.*": 0.0, f"{block}/mlp/fc1/.*": None,
        f"{block}/attention/out/.*": 1.0, f"{block}/attention/value/.*": 1.0,
    }  # fmt: skip
    config.train.freeze = (*own.items(), *config.train.freeze)
    assert train.train(config, tmp_path / "run")
    rows = workdir.read_metrics(tmp_path / "run")
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    run = experiment.prepare(config, tmp_path / "run")
    state = evaluation.best_state(run, train.initial_state(run))
    before, after = run.built.variables["params"]["text"], state.params["text"]
    moved = {
        name: np.abs(after[part][name] - before[part][name]).max()
        for part, name in (("reader", "words"), ("reader", "types"))
    }
    assert all(0 < far < 1e-3 for far in moved.values()), moved
    start, end = flatten(run.built.variables["params"]), flatten(state.params)
    far = {factor: [] for factor in (0.0, None, 0.1, 1.0)}
    for name, value in start.items():
        if name.startswith("text/reader/"):
            factor = next((own[rule] for rule in own if re.fullmatch(rule, name)), 0.1)
            far[factor].append(np.abs(end[name] - value).max())
    assert far[0.0] == [0] * 3
    assert far[None] == [0] * 2
    # What Adam moves a parameter by is the rate, whatever the size of its gradients.
    assert len(far[1.0]) == 4
    assert 0 < min(far[0.1]) <= max(far[0.1]) < min(far[1.0]) / 5


@pytest.mark.torch
def test_a_tokenizer_of_another_model_is_refused(flickr8k, minilm, tmp_path):
    folder = shutil.copytree(minilm, tmp_path / "text")
    config = flickr8k("frozen")
    config.model.text.weights = str(folder)
    library = parity.transformers()
    shape = BLOCKS | {"max_position_embeddings": 40}
    for words, rows in ((99, 23), (2, 200)):
        write_tokenizer(folder, map(str, range(words)), "[CLS]", "[SEP]", "[PAD]")
        model = library.BertModel(library.BertConfig(vocab_size=rows, **shape))
        parity.saved(parity.randomize(model), folder)
        message = rf"the tokenizer beside it has {words + 5} tokens, the weights have {rows}"
        with pytest.raises(WeightsError, match=message):
            experiment.prepare(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_vocabulary_of_other_data_is_refused(trained, tiny_shapes, tmp_path):
    """Its numbers would stand for other words, and nothing else would show it."""
    folder = shutil.copytree(trained, tmp_path / "run")
    other = tokenizer.train(["some other words"] * 4, "vse", 12)
    (folder / "tokenizer.json").write_text(other.to_json())
    with pytest.raises(WorkdirError, match="is not the tokenizer that the run was begun with"):
        vse_jax.load(folder)
    with pytest.raises(WorkdirError, match="but one of other data: bring the first one back"):
        experiment.prepare(tiny_shapes, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WorkdirError, match=r"tokenizer\.json cannot be read"):
        vse_jax.load(folder)


@pytest.mark.slow
def test_several_workdirs_are_measured_as_one(trained, trained_leap, opened, tmp_path):
    """Their similarities are averaged: here cosines and minus distances."""
    arguments = ["--mode=evaluate", *(f"--workdir={w}" for w in (trained, trained_leap))]
    code, output = Command([*arguments, f"--output={tmp_path / 'both'}"]).wait(100)
    assert code == 0, output
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert report["ensemble"] == [str(trained), str(trained_leap)]
    assert str(trained_leap) in (tmp_path / "both" / "report.html").read_text()
    scores = []
    for folder in (trained, trained_leap):
        run, state = opened(folder)
        scores.append(evaluation.encode(run, state, "test").scores())
    split = run.dataset.splits["test"]
    expected = retrieval.evaluate_scores("all_16", sum(scores) / 2, split.caption_image)
    assert {k: report["metrics"][k] for k in expected} == pytest.approx(expected)
    assert not np.allclose(scores[0], scores[1], atol=0.1)


@pytest.fixture(scope="module")
def sgraf(preset, tiny_shapes, tmp_path_factory):
    """A workdir of SAF and one of SGR, as they are before training."""
    folders = []
    for name in ("saf", "sgr"):
        config = preset("shapes", name)
        config.data = tiny_shapes.data.copy_and_resolve_references()
        config.data.max_tokens = 8
        config.evaluate = tiny_shapes.evaluate
        config.model.dimension, config.model.text.words = 16, 8
        folders.append(tmp_path_factory.mktemp(name) / "run")
        measuring.untrained(config, folders[-1])
    return folders


@pytest.mark.slow
def test_sgraf_is_the_mean_of_two_similarities(sgraf, opened, tmp_path):
    """As a loop ranks the mean of the matrices of SAF and of SGR, neither of which ranks so."""
    metrics = measuring.together(sgraf, tmp_path / "both", "the command")
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert (report["ensemble"], report["command"]) == (list(map(str, sgraf)), "the command")
    scores = []
    for folder in sgraf:
        run, state = opened(folder)
        scores.append(evaluation.encode(run, state, "test").scores())
    pairing = run.dataset.splits["test"].caption_image
    expected = loop_metrics(np.mean(scores, axis=0), pairing)
    assert {key: report["metrics"][key] for key in expected} == pytest.approx(expected)
    assert metrics == report["metrics"]
    for alone in scores:
        assert loop_metrics(alone, pairing) != pytest.approx(expected)


def on_features(preset, folder, ids="aabb", word="one"):
    """A config on features in the layout of SCAN: four test captions of the pictures `ids`."""
    folder.mkdir()
    rows = np.random.default_rng(0).normal(size=(4, 1, 4)).astype(np.float32)
    for stem, names, opening in (("train", "abcd", "a"), ("dev", "efgh", "a"), ("test", ids, word)):
        picture = [names.index(name) for name in names]
        captions = [f"{opening} dog number {n}" for n in range(4)]
        write(folder / "precomp", stem, rows[picture], captions, list(names))
    config = preset("custom", f"{folder / 'precomp'},vsepp")
    config.data.data_dir = str(folder / "prepared")
    config.model.dimension, config.model.text.words = 8, 4
    return config


@pytest.fixture(scope="module")
def measured(preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    measuring.untrained(on_features(preset, folder / "data"), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    "other", [{"ids": "aacc"}, {"word": "two"}, {"ids": "abbb"}], ids=["names", "words", "pairing"]
)
def test_workdirs_of_other_data_are_not_measured_as_one(preset, measured, other, tmp_path):
    folder = tmp_path / "run"
    measuring.untrained(on_features(preset, tmp_path / "data", **other), folder)
    told = rf"{folder} is measured on other pictures or captions than {measured}: .* one data set"
    with pytest.raises(DataError, match=told):
        measuring.together([measured, folder], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_what_is_wrong_with_one_of_several_is_told_before_any_is_loaded(
    measured, tmp_path, monkeypatch
):
    monkeypatch.setattr(experiment, "prepare", lambda *_, **__: pytest.fail("loaded"))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(measured / "config.json", bare)
    for folders, error, told in (
        ([measured, tmp_path / "nope"], WorkdirError, "nope is no workdir of vse_jax"),
        ([measured, bare], CheckpointError, "bare/checkpoints/best has no checkpoint yet: train"),
        ([measured, measured.parent / "." / "run"], WorkdirError, "run is named twice"),
    ):
        with pytest.raises(error, match=told):
            measuring.together(folders, tmp_path / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.slow
def test_where_the_report_of_several_workdirs_goes(trained, trained_leap, tmp_path):
    """To a folder of its own, without which there is none; one workdir has its report already."""
    folder = shutil.copytree(trained, tmp_path / "run")
    before = (folder / "report.json").read_bytes()
    both = [f"--workdir={trained}", f"--workdir={trained_leap}"]
    code, output = Command(["--mode=evaluate", *both, f"--output={folder}"]).wait(100)
    assert code == 1, output
    assert f"{folder} is a workdir: name another --output" in " ".join(output.split())
    assert "Traceback" not in output
    assert (folder / "report.json").read_bytes() == before
    for arguments in (both, [both[0], f"--output={tmp_path / 'both'}"]):
        code, output = Command(["--mode=evaluate", *arguments]).wait(100)
        assert (code, output.count("\n")) == (2, 1), output
        assert "is for evaluating several --workdir: give both" in output
    assert not (tmp_path / "both").exists()
    given = [*both, f"--output={tmp_path / 'both'}"]
    subprocess.run([sys.executable, "-m", "vse_jax.evaluate", *given], check=True, timeout=200)
    command = json.loads((tmp_path / "both" / "report.json").read_text())["command"]
    assert command == shlex.join(["python", "-m", "vse_jax.main", "--mode=evaluate", *given])
