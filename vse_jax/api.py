"""vse_jax.load(workdir) -> a trained model for pictures and sentences; needs no TensorFlow."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from vse_jax import (
    alignment,
    assembly,
    caption_writer,
    confidence,
    inputs,
    look,
    parallel,
    trained,
)
from vse_jax import codebook as codebooks
from vse_jax.alignment import Alignment
from vse_jax.data import box_files, proposals, tokenizer
from vse_jax.data.split import DataError
from vse_jax.encode import Encoded, Encoder, HostBatch, Side
from vse_jax.encoding import Encoding
from vse_jax.inputs import Boxes, Picture
from vse_jax.look import Class, Look
from vse_jax.models.cam import Classifier

T = TypeVar("T")


class Caption(NamedTuple):
    """A caption that a model wrote.

    Attributes:
      text: its words.
      log_probability: of the words and their end, given the picture.
      score: what it was chosen by.
    """

    text: str
    log_probability: float
    score: float


class Model:
    """A trained workdir, ready to encode and compare, to write captions, or to tell classes.

    Attributes:
      config: of the run.
      step: of the checkpoint that was loaded.
      codebook: learned, a `codebook.Codebook`; None where the model has none.
      classes: names of those that it tells; none where it tells none.
      looks_at_boxes: whether it looks at boxes: given ones, or else proposed ones.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Loads what a folder has; see `load`."""
        found = trained.read(folder)
        self.config, self.step, self.codebook = found.config, found.step, found.codebook
        self.classes, self._features = found.classes, found.features
        self._vocabulary, self._tokenizer = found.vocabulary, found.tokenizer
        self.looks_at_boxes, model = found.looks_at_boxes, found.model
        self._devices = parallel.Devices.all(self.config.parallel)
        self._backbone = model.image.backbone
        self._function_words = model.function_words
        self._encoder = Encoder(model, self._devices)
        writes = assembly.writes_captions(self.config)
        self._writer = caption_writer.CaptionWriter(model, self._devices) if writes else None
        self._variables = self._encoder.variables(**found.variables)

    @property
    def reads_features(self) -> bool:
        """Whether pictures are features of regions that others computed."""
        return self._features is not None

    def encode_images(
        self,
        pictures: Iterable[Picture] | np.ndarray,
        batch_size: int = 64,
        boxes: Sequence[Boxes] | np.ndarray | None = None,
    ) -> Encoded:
        """Embeddings float32 [n, d] of pictures, in order; an `Encoding` of a pairwise network.

        Args:
          pictures: each a path, encoded bytes (JPEG, PNG, ...) or uint8 [h, w, 3]; of any sizes.
            Paths and bytes are turned upright as their EXIF says. Of a model that was trained on
            features: floats [n, r, f], or of each picture its own [r, f].
          batch_size: pictures encoded at a time.
          boxes: of each picture the regions [r, 4] to look at, for a model of
            `model.image.features` = "boxes": (y0, x0, y1, x1) as shares of height and width. The
            whole picture is looked at too, as the last region. None: those that
            scripts/propose_regions.py would propose, which needs the extra [regions].

        Raises:
          DataError: a picture cannot be read, a box is none, or OpenCV is missing; says which.
          TypeError: `pictures` is a single picture.
          ValueError: boxes are given to a model that has its own regions.
          WeightsError: the backbone's weights, whose classifier ranks proposals, are gone.
        """
        if not self.looks_at_boxes and boxes is not None:
            raise ValueError(
                "this model was not trained on boxes, but on the regions of "
                f"model.image.features={self.config.model.image.features}: give no boxes"
            )
        if self._features is not None:
            return self._encode_features(pictures, self._features, batch_size)
        pictures = _several(pictures, "encode_images")
        size = self.config.data.image_size
        _check_batch_size(batch_size)
        regions = self._looked_at(pictures, boxes, batch_size) if self.looks_at_boxes else []
        most = max(map(len, regions), default=1)
        # So that there are few compilations.
        more = 1 << (most - 1).bit_length()

        def batches() -> Iterator[HostBatch]:
            with ThreadPoolExecutor() as threads:
                for start, count, padded in self._slices(len(pictures), batch_size):
                    chosen = [(n, pictures[n]) for n in range(start, start + count)]
                    pixels = list(
                        threads.map(lambda item: inputs.pixels(item[0], item[1], size), chosen)
                    )
                    batch = self.image_batch(pixels, padded)
                    if regions:
                        batch["boxes"] = np.zeros((padded, more, 4), np.float32)
                        for row, own in enumerate(regions[start : start + count]):
                            batch["boxes"][row, : len(own)] = own
                    yield batch

        _check_batch_size(batch_size)
        if not len(pictures):
            return self._nothing()
        found = self._encoder.images(self._variables, batches())
        if regions and isinstance(found, Encoding):
            return found.replace(local=found.local[:, :most], mask=found.mask[:, :most])
        return found

    def _looked_at(
        self,
        pictures: Sequence[Picture],
        boxes: Sequence[Boxes] | np.ndarray | None,
        batch_size: int = 1,
    ) -> list[np.ndarray]:
        """The boxes float32 [r, 4] of each picture, the whole one last."""
        if boxes is None:
            return self._proposed(pictures, batch_size)
        if len(boxes) != len(pictures):
            raise DataError(
                f"{len(pictures)} pictures and the boxes of {len(boxes)}; give each its own"
            )
        return [
            box_files.with_whole(inputs.checked_boxes(own, f"picture {number}"))
            for number, own in enumerate(boxes)
        ]

    @functools.cached_property
    def _ranking(self) -> confidence.Confidence | None:
        """What ranks proposals; None where the backbone's weights have no classifier."""
        return confidence.Confidence.of(self.config)

    def _proposed(self, pictures: Sequence[Picture], batch_size: int) -> list[np.ndarray]:
        """As `_looked_at`, of the boxes that selective search finds and the backbone ranks."""
        size, found = self.config.data.image_size, []
        for start, count, padded in self._slices(len(pictures), batch_size):
            chosen = range(start, start + count)
            originals = [
                np.asarray(inputs.in_own_size(number, pictures[number])) for number in chosen
            ]
            pixels = np.zeros((padded, size, size, 3), np.uint8)
            for row, picture in zip(pixels, originals, strict=False):
                row[:] = inputs.pixels(0, picture, size)
            most = proposals.REGIONS
            found += confidence.proposed(self._ranking, originals, pixels, most)
        return found

    def _encode_features(
        self, pictures: Iterable[Picture] | np.ndarray, width: int, batch_size: int
    ) -> Encoded:
        """As `encode_images`, of the features that the model was trained on."""
        if isinstance(pictures, str | bytes | os.PathLike):
            raise TypeError("this model takes features, [n, r, f] or a list of [r, f], no pictures")
        regions = [
            inputs.checked_regions(number, picture, width)
            for number, picture in enumerate(_listed(pictures, "pictures"))
        ]
        most = max(map(len, regions), default=0)

        def batches() -> Iterator[HostBatch]:
            for start, count, padded in self._slices(len(regions), batch_size):
                features = np.zeros((padded, most, width), np.float32)
                mask = np.zeros((padded, most), bool)
                for row, own in enumerate(regions[start : start + count]):
                    features[row, : len(own)], mask[row, : len(own)] = own, True
                yield {
                    "features": features,
                    "feature_mask": mask,
                    "weight": _weight(count, padded),
                }

        _check_batch_size(batch_size)
        if not regions:
            return self._nothing()
        return self._encoder.images(self._variables, batches())

    def encode_texts(self, sentences: Iterable[str], batch_size: int = 256) -> Encoded:
        """Embeddings float32 [n, d] of sentences, in order; an `Encoding` of a pairwise network.

        Args:
          sentences: of any number and length; unknown words count as <unk> or are dropped, as
            in training.
          batch_size: sentences encoded at a time.

        Raises:
          TypeError: `sentences` is a single string, or holds something else.
          DataError: a sentence is no Unicode text; says which.
          ValueError: the model writes captions or tells classes, and reads none.
        """
        if not assembly.compares(self.config):
            does = "writes captions" if self._writer is not None else "tells classes of pictures"
            raise ValueError(f"this model {does}, and reads no sentences")
        if isinstance(sentences, str | bytes):
            raise TypeError("encode_texts takes a list of strings, e.g. ['two dogs in snow']")
        sentences = _listed(sentences, "sentences")
        _check_sentences(sentences)

        def batches() -> Iterator[HostBatch]:
            for start, count, padded in self._slices(len(sentences), batch_size):
                yield self.text_batch(sentences[start : start + count], padded)

        _check_batch_size(batch_size)
        if not len(sentences):
            return self._nothing()
        return self._encoder.texts(self._variables, batches())

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what embeddings and scores depend on.

        Parameters, words, size of pictures and what their pixels become, regions, similarity.
        """
        found = hashlib.sha256()
        variables = self._devices.fetch(self._variables)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}".encode())
            found.update(np.asarray(leaf).tobytes())
        image = self.config.model.image
        told = (
            self._vocabulary, self.config.data.image_size, self.config.data.max_tokens,
            image.features, image.cells, self.config.model.similarity,
            [getattr(self._backbone, name, None) for name in ("mean", "std")],
        )  # fmt: skip
        found.update(json.dumps(told).encode())
        return found.hexdigest()

    def share(self, batch_size: int) -> tuple[slice, int]:
        """(this process's rows of a batch, how many there are), for `in_turn`.

        Args:
          batch_size: of all processes together; rounded up so that all devices have as many.
        """
        total, of = self._devices.shared(batch_size), parallel.process_share()
        own = total // of["processes"]
        return slice(of["process"] * own, (of["process"] + 1) * own), total

    def in_turn(
        self, side: Side, batches: Iterable[HostBatch]
    ) -> Iterator[tuple[Float[np.ndarray, "b d"], Bool[np.ndarray, " b"]]]:
        """(embeddings, False of padding) of each batch, in memory for a few; for many items.

        Args:
          side: which tower.
          batches: of `image_batch` or `text_batch`, each process's `share` of them.
        """
        return self._encoder.in_turn(side, self._variables, batches)

    def image_batch(
        self, pictures: Sequence[UInt8[np.ndarray, "s s 3"] | None], rows: int
    ) -> HostBatch:
        """A batch of `rows` pictures that have the model's size already; padding for None."""
        size = self.config.data.image_size
        image = np.zeros((rows, size, size, 3), np.uint8)
        weight = np.zeros(rows, np.float32)
        for row, picture in enumerate(pictures):
            if picture is not None:
                image[row], weight[row] = picture, 1
        return {"image": image, "weight": weight}

    def text_batch(self, sentences: Sequence[str | None], rows: int) -> HostBatch:
        """A batch of `rows` sentences; padding for None."""
        found, known = self._tokenizer.tokenize([text or "" for text in sentences])
        tokens = np.zeros((rows, self.config.data.max_tokens), np.int32)
        mask = np.zeros(tokens.shape, bool)
        tokens[: len(found), : found.shape[1]] = found
        mask[: len(known), : known.shape[1]] = known
        weight = np.zeros(rows, np.float32)
        weight[: len(sentences)] = [text is not None for text in sentences]
        return {"tokens": tokens, "token_mask": mask, "weight": weight}

    def similarity(self, images: Encoded, texts: Encoded) -> Float[np.ndarray, "n m"]:
        """Scores float32 of every picture with every sentence; larger is closer.

        Args:
          images: as `encode_images` gives them.
          texts: as `encode_texts` gives them.

        They are cosines, or minus Euclidean distances where the model was trained for these.

        Raises:
          ValueError: an array is not of embeddings of this model, or not finite.
        """
        if assembly.is_pairwise(self.config):
            for name, given in (("images", images), ("texts", texts)):
                if not isinstance(given, Encoding):
                    raise ValueError(
                        f"{name} is a {type(given).__name__}; this model compares in pairs: "
                        "expected what encode_images and encode_texts give"
                    )
            return self._encoder.scores(self._variables, images, texts)
        for name, rows in (("image", images), ("text", texts)):
            self._check(f"{name}s", rows)
            codebooks.check_finite(rows, name)
        matrix = assembly.similarity_of(self.config).matrix
        return np.asarray(matrix(jnp.asarray(images), jnp.asarray(texts)))

    def caption(
        self,
        pictures: Iterable[Picture] | np.ndarray,
        *,
        beams: int | None = None,
        n_best: int = 1,
        length_power: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        samples: int = 1,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 64,
        boxes: Sequence[Boxes] | None = None,
    ) -> list[list[Caption]]:
        """What the model writes of each picture, the best first; or captions drawn, in that order.

        Args:
          pictures: as of `encode_images`.
          beams: captions kept by the search; 1 is greedy; None: as the config says.
          n_best: of them returned.
          length_power: the best is by log p / length ** length_power; None: as the config says.
          temperature: draw captions instead, at this temperature; 0 is greedy.
          top_k: draw from so many of the most likely words only; None: from all.
          samples: captions drawn of each picture.
          seed: of what is drawn, for each picture by its number.
          first: number of the first of these pictures, for who calls this for some after others.
          batch_size: pictures at a time.
          boxes: of each picture [r, 4], (y0, x0, y1, x1) in [0, 1]: captions are of these, cropped,
            in place of the whole pictures; those of the first picture come first.

        Raises:
          ValueError: the model writes no captions, or these options are impossible.
          DataError, TypeError: as `encode_images`; boxes that are none.
        """
        writer, words = self._captioner()
        of_search = {"beams": beams, "n_best": n_best, "length_power": length_power}
        of_draws = {"top_k": top_k, "samples": samples, "seed": seed}
        inputs.check_writing(temperature, of_search, of_draws)
        if boxes is not None:
            if self.reads_features:
                raise ValueError("this model was trained on features: give those of the regions")
            size = self.config.data.image_size
            several = _several(pictures, "caption")
            pictures = inputs.regions(several, _listed(boxes, "boxes"), size)
        whole = self.encode_images(pictures, batch_size)
        if not len(whole):
            return []
        special, most = caption_writer.special_tokens(words), self.config.data.max_tokens - 1
        if temperature is None:
            section = self.config.evaluate
            found = writer.best(
                self._variables,
                whole,
                special,
                most,
                beams=section.beams if beams is None else beams,
                n_best=n_best,
                length_power=section.length_power if length_power is None else length_power,
                batch_size=batch_size,
            )
        else:
            found = writer.drawn(
                self._variables,
                whole,
                special,
                most,
                temperature=temperature,
                top_k=top_k,
                samples=samples,
                seed=seed,
                first=first,
                batch_size=batch_size,
            )
        return [
            [Caption(*row) for row in zip(words.sentences(tokens), *scores, strict=True)]
            for tokens, *scores in zip(
                found.tokens,
                found.log_probabilities.tolist(),
                found.scores.tolist(),
                strict=True,
            )
        ]

    def _captioner(self) -> tuple[caption_writer.CaptionWriter, tokenizer.Tokenizer]:
        """What writes captions and its words; raises ValueError where the model has none."""
        if self._writer is None and not assembly.compares(self.config):
            raise ValueError(
                "this model tells classes and writes no captions, as its "
                "objective.generation.weight is 0: train one where it is above 0, as "
                "configs/shapes.py:cam,objective=joint"
            )
        if self._writer is None:
            raise ValueError(
                f"the network {self.config.model.network!r} compares pictures and sentences and "
                "writes no captions; train one that does, as configs/flickr8k.py:multimodal_rnn"
            )
        return self._writer, self._tokenizer

    def classify(
        self, pictures: Iterable[Picture] | np.ndarray, batch_size: int = 64
    ) -> list[list[Class]]:
        """Every class of each picture with its probability, the likeliest first.

        Args:
          pictures: as of `encode_images`.
          batch_size: pictures at a time.

        Raises:
          ValueError: the model tells no classes.
          DataError, TypeError: as `encode_images`.
        """
        look.check_classifies(self.classes, self.config.model.network)
        whole = self.encode_images(_several(pictures, "classify"), batch_size)
        if not len(whole):
            return []
        classifier = Classifier(len(self.classes))
        params = self._devices.fetch(self._variables["params"]["classifier"])
        logits = np.asarray(classifier.apply({"params": params}, jnp.asarray(whole)))
        return look.classes(logits, self.classes)

    def look(self, picture: Picture, sentence: str | None = None, name: str | None = None) -> Look:
        """What a model of "cam" tells of a picture, and where it looks for it.

        Args:
          picture: as of `encode_images`.
          sentence: for whose words it is to look; None: for those of its own caption.
          name: of the class for which it is to look; None: for the likeliest.

        Raises:
          ValueError: the model is of another network, writes no captions where a sentence is given,
            or tells no classes, or none of this name, where one is given.
          DataError: the model knows no content word of the sentence, or the picture cannot be read.
          TypeError: the sentence is no string.
        """
        look.check(self.config, self.classes, sentence, name)
        image = np.asarray(inputs.in_own_size(0, picture))
        unknown: tuple[str, ...] = ()
        if sentence is not None:
            _check_sentences([sentence])
            unknown = look.check_sentence(self._tokenizer, sentence, self._function_words)
        elif self._writer is not None:
            [[own]] = self.caption([image])
            sentence = own.text
        number = -1 if name is None else look.number_of(name, self.classes)
        batch = self._look_batch(image, sentence or "", number)
        found = self._encoder.looks(self._variables, [batch])
        cells = alignment.cell_boxes(self.config, self._backbone)
        return look.named(found, cells, self.classes, number, sentence, unknown)

    def _look_batch(self, image: np.ndarray, sentence: str, number: int) -> HostBatch:
        """A picture, a sentence and the number of a class, for `Encoder.looks`."""
        size, most = self.config.data.image_size, self.config.data.max_tokens
        [(_, _, padded)] = self._slices(1, 1)
        tokens, mask = self._tokenizer.tokenize([sentence])
        # As long as sentences can be, so that all share one compilation.
        behind = ((0, padded - 1), (0, most - tokens.shape[1]))
        return {
            "image": np.repeat(inputs.pixels(0, image, size)[None], padded, axis=0),
            "tokens": np.pad(tokens, behind),
            "token_mask": np.pad(mask, behind),
            "label": np.full(padded, number, np.int32),
            "weight": _weight(1, padded),
        }

    def align(
        self,
        picture: Picture,
        sentence: str,
        boxes: Boxes | None = None,
        beta: float | None = None,
    ) -> Alignment:
        """Which region of a picture each word of a sentence is about, by a model of "dvsa".

        Args:
          picture: as of `encode_images`.
          sentence: unknown words are dropped or count as <unk>, as in training.
          boxes: of the picture, as of `encode_images`; of a model that was trained on features,
            those of the features' regions.
          beta: what it is worth that neighbouring words are about one region, in units of the
            products of words and regions; None: `evaluate.beta` of the run.

        Raises:
          AlignmentError: the model is of another network.
          DataError: the model knows no word of the sentence, the picture cannot be read, or a box
            is none; says which.
          ValueError: boxes are given to a model that has its own regions, or missing where only
            features are known; or `beta` is negative or not finite.
        """
        alignment.check(self.config)
        beta = self.config.evaluate.beta if beta is None else beta
        text = self.encode_texts([sentence])
        tokens = alignment.known_words(self._tokenizer, sentence)
        regions = self._boxes_of_regions(picture, boxes)
        given = regions if self.looks_at_boxes else None if self._features is not None else boxes
        image = self.encode_images([picture], boxes=None if given is None else [given])
        dtype = assembly.compute_dtype(self.config)
        [pair] = alignment.align_pairs(image, text, beta=beta, dtype=dtype)
        found = alignment.named(pair, tokens, regions, self._tokenizer)
        unknown = alignment.unknown_words(self._tokenizer, sentence)
        return dataclasses.replace(found, unknown=unknown)

    def _boxes_of_regions(self, picture: Picture, boxes: Boxes | None) -> Float[np.ndarray, "r 4"]:
        """Those of the regions of a picture, for which `boxes` were given."""
        if self.looks_at_boxes:
            [own] = self._looked_at([picture], None if boxes is None else [boxes])
            return own
        if self._features is None:
            return alignment.cell_boxes(self.config, self._backbone)
        if boxes is None:
            raise ValueError(
                "this model was trained on features, whose boxes only their maker knows: give "
                "boxes, those [r, 4] of the features' regions"
            )
        return inputs.checked_boxes(boxes, "picture 0")

    def quantize(self, embeddings: np.ndarray) -> UInt8[np.ndarray, "n m"]:
        """M bytes for each embedding: its codes in `codebook`.

        Args:
          embeddings: [n, D], of pictures or sentences.

        Raises:
          ValueError: the model was trained without a quantizer, or these are not embeddings of it.
        """
        codebook = codebooks.required(self.codebook)
        self._check("embeddings", embeddings)
        return codebooks.quantize(embeddings, codebook)

    def _check(self, name: str, rows: np.ndarray) -> None:
        """Raises ValueError unless they are as embeddings of this model are."""
        if np.ndim(rows) != 2 or np.shape(rows)[1] != self.config.model.dimension:
            raise ValueError(
                f"{name} is {list(np.shape(rows))}; expected embeddings "
                f"[n, {self.config.model.dimension}]"
            )
        if np.asarray(rows).dtype.kind not in "fiu":
            raise ValueError(f"{name} is of {np.asarray(rows).dtype}; expected floats")

    def _slices(self, total: int, batch_size: int) -> Iterator[tuple[int, int, int]]:
        """(first, how many, padded to) of each batch; few padded sizes, so few compilations."""
        for start in range(0, total, batch_size):
            count = min(batch_size, total - start)
            padded = min(batch_size, 1 << (count - 1).bit_length())
            yield start, count, -(-padded // self._devices.count) * self._devices.count

    def _nothing(self) -> Encoded:
        pooled = np.zeros((0, self.config.model.dimension), np.float32)
        if assembly.is_pairwise(self.config):
            return Encoding(pooled[:, None], np.zeros((0, 1), bool), pooled)
        return pooled


def _several(pictures: Iterable[Picture], taken_by: str) -> Sequence[Picture]:
    """The pictures in order and countable; raises TypeError where it is a single one."""
    single = isinstance(pictures, str | bytes | os.PathLike)
    if single or (isinstance(pictures, np.ndarray) and pictures.ndim == 3):
        raise TypeError(f"{taken_by} takes a list of pictures, e.g. ['a.jpg']")
    return _listed(pictures, "pictures")


def _listed(items: Iterable[T], what: str) -> Sequence[T]:
    """The items in order and countable."""
    if isinstance(items, Mapping | Set) or not isinstance(items, Iterable):
        raise TypeError(f"{what} is a {type(items).__name__}; expected a list")
    return items if isinstance(items, Sequence) else list(items)


def _check_sentences(sentences: Sequence[str]) -> None:
    """Raises TypeError or DataError that names the sentence which is no text."""
    for number, text in enumerate(sentences):
        if not isinstance(text, str):
            raise TypeError(f"sentence {number} is a {type(text).__name__}; expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"sentence {number} is no Unicode text: {error}") from error


def load(folder: str | os.PathLike[str]) -> Model:
    """The model of a trained workdir: its best checkpoint, or the newest that is whole.

    Args:
      folder: the workdir; or what `python -m vse_jax.export --format=safetensors` wrote, or weights
        of CLIP or SigLIP with their config.json and tokenizer.json; or "hub:OWNER/NAME", where one
        of these lies on the Hugging Face hub (of a revision by `@REVISION`).

    Raises:
      WorkdirError: not a workdir, or its tokenizer is another one; or the hub has no such.
      CheckpointError: no usable checkpoint.
      WeightsError, DataError: the weights, or their tokenizer, are damaged or of another model.
    """
    return Model(folder)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")


def _weight(count: int, padded: int) -> Float[np.ndarray, "b"]:
    return (np.arange(padded) < count).astype(np.float32)
