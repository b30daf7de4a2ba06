"""A trained model as functions of arrays alone, for as many rows as come."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vse_jax import assembly
from vse_jax import codebook as codebooks
from vse_jax.encoding import Encoding
from vse_jax.models.cam import Classifier
from vse_jax.models.multimodal_rnn import State
from vse_jax.trained import Trained

Size = int | str
ENCODING = ("local", "mask", "pooled")


class Input(NamedTuple):
    """An argument.

    Attributes:
      kind: its dtype's name.
      shape: sizes of its axes; a letter stands for any, the same wherever it stands.
      below: of whole numbers, one more than the largest that there is.
    """

    kind: str
    shape: tuple[Size, ...]
    below: int | None = None


class Function(NamedTuple):
    """A function of a trained model, its parameters inside.

    Attributes:
      name: of it, and of the file that it becomes.
      call: arrays -> a tuple of arrays.
      inputs: by name, in the order of the arguments.
      outputs: names of the results.
    """

    name: str
    call: Callable[..., tuple[Any, ...]]
    inputs: dict[str, Input]
    outputs: tuple[str, ...]

    def arguments(self) -> list[jax.ShapeDtypeStruct]:
        """The arguments as JAX traces them, their sizes symbols."""
        scope = jax.export.SymbolicScope()
        return [
            jax.ShapeDtypeStruct(
                jax.export.symbolic_shape(", ".join(map(str, given.shape)), scope=scope), given.kind
            )
            for given in self.inputs.values()
        ]

    def results(self) -> dict[str, Input]:
        """The results, by name."""
        found = jax.eval_shape(self.call, *self.arguments())
        return {
            name: Input(str(one.dtype), tuple(map(_plain, one.shape)))
            for name, one in zip(self.outputs, found, strict=True)
        }


def functions(trained: Trained, regions: int | None = None) -> list[Function]:
    """The functions of a model, those that it has.

    `image` and `text` are the towers; `compare` the scores of all pairs, of a model that compares
    in pairs; `caption_start` and `caption_step` write captions word by word; `classify` tells
    classes; `quantize` makes codes of embeddings. All that follow `text` take what the towers give.

    Args:
      trained: the model.
      regions: how many a picture has, of a model that is given them or boxes; None: any number.
    """
    variables = jax.tree.map(jnp.asarray, trained.variables)
    image = _image(trained, variables, regions or "r")
    found = [image]
    if assembly.compares(trained.config):
        found.append(_text(trained, variables))
    if trained.model.pairwise is not None:
        found.append(_compare(trained, variables, image, found[-1]))
    width = image.results()[image.outputs[-1]].shape[-1]
    whole = {"embeddings": Input("float32", ("b", width))}
    if trained.model.captioner is not None:
        found += _captioner(trained, variables, whole)
    if trained.model.classifier is not None:
        found.append(_classify(trained, variables, whole))
    if trained.codebook is not None:
        book = jax.tree.map(jnp.asarray, trained.codebook)

        def quantize(embeddings: Any) -> tuple[Any]:
            return (codebooks.encode(embeddings, book).astype(jnp.uint8),)

        found.append(Function("quantize", quantize, whole, ("codes",)))
    return found


def _encodes(trained: Trained, encoding: Any) -> tuple[Any, ...]:
    """What a tower gives: floats are float32 whatever it computes in."""
    if trained.model.pairwise is None:
        return (encoding.pooled.astype(jnp.float32),)
    local, pooled = (x.astype(jnp.float32) for x in (encoding.local, encoding.pooled))
    return local, encoding.mask, pooled


def _outputs(trained: Trained) -> tuple[str, ...]:
    return ("embeddings",) if trained.model.pairwise is None else ENCODING


def _tower(trained: Trained, variables: Any, name: str, inputs: dict[str, Input]) -> Function:
    model = trained.model
    method = model.encode_image if name == "image" else model.encode_text

    def call(*arrays: Any) -> tuple[Any, ...]:
        batch = dict(zip(inputs, arrays, strict=True))
        return _encodes(trained, model.apply(variables, batch, train=False, method=method))

    return Function(name, call, inputs, _outputs(trained))


def _image(trained: Trained, variables: Any, regions: Size) -> Function:
    if trained.features is not None:
        inputs = {
            "features": Input("float32", ("b", regions, trained.features)),
            "feature_mask": Input("bool", ("b", regions)),
        }
        return _tower(trained, variables, "image", inputs)
    side = trained.config.data.image_size
    inputs = {"image": Input("uint8", ("b", side, side, 3))}
    if trained.looks_at_boxes:
        inputs["boxes"] = Input("float32", ("b", regions, 4))
    return _tower(trained, variables, "image", inputs)


def _text(trained: Trained, variables: Any) -> Function:
    shape = ("b", trained.config.data.max_tokens)
    inputs = {
        "tokens": Input("int32", shape, trained.tokenizer.vocabulary),
        "token_mask": Input("bool", shape),
    }
    return _tower(trained, variables, "text", inputs)


def _compare(trained: Trained, variables: Any, image: Function, text: Function) -> Function:
    model, inputs = trained.model, {}
    for side, tower, rows in (("image", image, "a"), ("text", text, "b")):
        for name, own in tower.results().items():
            inputs[f"{side}_{name}"] = Input(own.kind, (rows, *own.shape[1:]))

    def compare(*arrays: Any) -> tuple[Any]:
        images, texts = Encoding(*arrays[:3]), Encoding(*arrays[3:])
        scores: Any = model.apply(variables, images, texts, method=model.compare)
        return (scores.astype(jnp.float32),)

    return Function("compare", compare, inputs, ("scores",))


def _captioner(trained: Trained, variables: Any, whole: dict[str, Input]) -> list[Function]:
    model = trained.model

    def arrays_of(state: State) -> tuple[Any, ...]:
        return tuple(array for array in state if array is not None)

    def start(embeddings: Any) -> tuple[Any, ...]:
        state: Any = model.apply(variables, embeddings, method=model.begin_captions)
        return arrays_of(state)

    def step(*arrays: Any) -> tuple[Any, ...]:
        *state, words = arrays
        before = State(*state, *[None] * (2 - len(state)))
        found: Any = model.apply(variables, before, words, method=model.next_word)
        return *arrays_of(found[0]), jax.nn.log_softmax(found[1].astype(jnp.float32))

    names = ("argument", "memory")[: 1 + (trained.config.model.captioner.cell == "lstm")]
    begin = Function("caption_start", start, whole, names)
    state, after = begin.results(), (*(f"next_{name}" for name in names), "log_probabilities")
    words = {"words": Input("int32", ("b",), trained.tokenizer.vocabulary)}
    return [begin, Function("caption_step", step, state | words, after)]


def _classify(trained: Trained, variables: Any, whole: dict[str, Input]) -> Function:
    classifier = Classifier(len(trained.classes))
    own = {"params": variables["params"]["classifier"]}

    def classify(embeddings: Any) -> tuple[Any]:
        logits: Any = classifier.apply(own, embeddings)
        return (jax.nn.softmax(logits),)

    return Function("classify", classify, whole, ("probabilities",))


def example(function: Function, rows: dict[str, int], rng: np.random.Generator) -> list[np.ndarray]:
    """Arguments drawn at random.

    Args:
      function: whose they are.
      rows: what the letters of its shapes stand for.
      rng: draws.
    """
    return [_drawn(name, given, rows, rng) for name, given in function.inputs.items()]


def _drawn(name: str, given: Input, rows: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    shape = tuple(rows[size] if isinstance(size, str) else size for size in given.shape)
    if given.kind == "bool":
        # Leading ones, at least a word between the tokens around a sentence.
        least = min(3, shape[1])
        return np.arange(shape[1])[None] < rng.integers(least, shape[1] + 1, shape[0])[:, None]
    if given.kind.startswith(("int", "uint")):
        return rng.integers(0, given.below or 256, shape).astype(given.kind)
    if name == "boxes":
        corners = np.sort(rng.random((*shape[:2], 2, 2)), axis=2)
        return corners.reshape(shape).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


def _plain(size: Any) -> Size:
    return int(size) if isinstance(size, int) else str(size)
