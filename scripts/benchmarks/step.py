"""The training step of configs/flickr8k.py beside PyTorch's."""

import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import peak
from benchmarks.timing import Options, Row, Timing, alternately, rate, ratio
from vse_jax import assembly, parallel, training
from vse_jax.models.model import VisualSemanticModel
from vse_jax.objectives.base import Spec

ROOT = Path(__file__).parents[2]
# Flickr8k's training split: 6,000 pictures of 5 captions, 2,632 words seen 4 times or special.
IMAGES, CAPTIONS_OF_EACH, VOCABULARY = 6000, 5, 2632
BATCHES = 16
TORCH, COMPILED = "PyTorch", "PyTorch compiled"
Batch = dict[str, np.ndarray]


class Captions(NamedTuple):
    """Tokenized captions: [m, l] numbers and mask, size of the vocabulary, where they are from."""

    tokens: np.ndarray
    mask: np.ndarray
    vocabulary: int
    source: str


def run(options: Options) -> list[Row]:
    """Steps a second of both at batch 128, 1,024 channels, 300-d words."""
    conf = config()
    return measure(
        conf, captions_of(options, conf), options.rounds or 20, options.compile, peak.gflops()
    )


def config(choice: str = "vsepp", precision: str = "float32", file: str = "flickr8k") -> ConfigDict:
    """configs/FILE.py:choice from the step where hard negatives begin, at a constant rate."""
    path = ROOT / "configs" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"{file}_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    conf = module.get_config(choice)
    conf.objective.triplet.warmup_epochs = conf.objective.leap.warmup_epochs = 0.0
    conf.train.schedule = "constant"
    conf.precision = precision
    return conf


def without_dropout(conf: ConfigDict) -> ConfigDict:
    """The same step without its randomness, in which two programs can be compared."""
    still = conf.copy_and_resolve_references()
    still.model.image.dropout = still.model.text.dropout = 0.0
    still.model.image.drop_parts = still.model.text.alter = 0.0
    still.model.captioner.dropout = 0.0
    return still


def captions_of(options: Options, conf: ConfigDict) -> Captions:
    """Flickr8k's own where the command line says where they are, else drawn."""
    return real(options.manual_dir, conf) if options.manual_dir else drawn(conf)


def real(manual_dir: Path, conf: ConfigDict) -> Captions:
    """Flickr8k's own captions, as many as its training has, through the project's tokenizer."""
    from vse_jax.data import tokenizer

    path = manual_dir / "Flickr8k_text" / "Flickr8k.token.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    captions = [line.split("\t", 1)[1] for line in lines if line.strip()]
    captions = captions[: IMAGES * CAPTIONS_OF_EACH]
    words = tokenizer.train(captions, conf.data.tokenizer, conf.data.max_tokens)
    return Captions(*words.tokenize(captions), words.vocabulary, "Flickr8k's captions")


def drawn(conf: ConfigDict, vocabulary: int = VOCABULARY) -> Captions:
    """Uniform words in captions of Flickr8k's lengths: round(gamma), mean 12.8, deviation 4."""
    rng = np.random.default_rng(0)
    mean, deviation, least, most = 12.8, 4.0, 4, conf.data.max_tokens
    shape = (mean / deviation) ** 2
    count = IMAGES * CAPTIONS_OF_EACH
    lengths = np.clip(np.round(rng.gamma(shape, mean / shape, count)), least, most).astype(int)
    mask = np.arange(most) < lengths[:, None]
    tokens = np.where(mask, rng.integers(4, vocabulary, (count, most)), 0).astype(np.int32)
    note = f"lengths round(gamma(mean {mean}, sd {deviation:g})) in [{least}, {most}]"
    return Captions(tokens, mask, vocabulary, note)


def batches(
    captions: Captions, size: int, width: int, count: int = BATCHES, parts: int = 1
) -> list[Batch]:
    """`count` batches of captions drawn at random, with random features [b, parts, width].

    Captions of one picture have its features and its id.
    """
    rng = np.random.default_rng(1)
    made = []
    for _ in range(count):
        rows = rng.choice(len(captions.tokens), size, replace=False)
        ids = (rows // CAPTIONS_OF_EACH).astype(np.int32)
        # Like pooled ReLU6 features, none is below 0.
        features = [np.random.default_rng(i).gamma(0.5, 1.0, (parts, width)) for i in ids]
        made.append(
            {
                "features": np.asarray(features, np.float32),
                "feature_mask": np.ones((size, parts), bool),
                "tokens": captions.tokens[rows],
                "token_mask": captions.mask[rows],
                "image_id": ids,
                "caption_id": rows.astype(np.int32),
                "weight": np.ones(size, np.float32),
            }
        )
    return made


def spec_of(conf: ConfigDict) -> Spec:
    """What an objective is told before a training on Flickr8k."""
    epoch = IMAGES * CAPTIONS_OF_EACH / conf.train.batch_size
    return Spec(conf.model.dimension, IMAGES, math.ceil(epoch), round(conf.train.epochs * epoch))


def training_of(
    conf: ConfigDict, model: VisualSemanticModel, params: dict[str, Any]
) -> training.Training:
    """The training of a model on Flickr8k."""
    spec, epoch = spec_of(conf), IMAGES * CAPTIONS_OF_EACH / conf.train.batch_size
    return training.build(
        conf, model, params, images=spec.images, steps=spec.steps, steps_per_epoch=epoch
    )


def started(
    conf: ConfigDict, words: assembly.Words, example: Batch | None
) -> tuple[VisualSemanticModel, dict[str, Any]]:
    """The model and its variables, random ones: cached features pass the frozen backbone by.

    Args:
      conf: of the step.
      words: of the captions, and how many classes there are.
      example: a batch with features of the widths to come, in a model of what reads these alone;
        None: a whole model, whose features have the width of its backbone.
    """
    loose = conf.copy_and_resolve_references()
    # A frozen backbone would ask for pretrained weights.
    loose.train.freeze, loose.model.image.weights = (), None
    frozen = assembly.Frozen(image=False, text=False)
    if example is None:
        built = assembly.build_model(loose, words, frozen)
        return built.model, built.variables
    model = assembly.make_model(loose, words, assembly.Sources(None, None), frozen)
    few = {name: rows[:1] for name, rows in example.items()}
    return model, {"batch_stats": {}} | drawn_variables(model, few, conf.seed)


def drawn_variables(model: VisualSemanticModel, batch: Batch, seed: int) -> dict[str, Any]:
    """What the model starts from on such batches, on the host."""
    draw = jax.jit(partial(model.init, train=False))
    return jax.tree.map(np.array, draw(jax.random.key(seed), batch))


class OurStep:
    """The project's own step over all devices, one host batch a call."""

    def __init__(
        self,
        conf: ConfigDict,
        vocabulary: int,
        still: bool = False,
        classes: int = 1,
        function_words: tuple[int, ...] = (),
        example: Batch | None = None,
    ) -> None:
        """Starts from random weights.

        Args:
          conf: of the step.
          vocabulary: its size.
          still: whether the networks' own dropout is left out, for a comparison.
          classes: of pictures.
          function_words: tokens that no map is made of.
          example: as of `started`; with one, nothing that is frozen is there.
        """
        words = assembly.Words(vocabulary, 0, (), function_words, classes)
        model, variables = started(conf, words, example)
        if example is not None:
            conf = conf.copy_and_resolve_references()
            conf.train.freeze = tuple(rule for rule in conf.train.freeze if rule[1] is not None)
        whole = training_of(conf, _still(model) if still else model, variables["params"])
        state = whole.initial_state(variables)
        self.params = variables["params"]
        self._devices = parallel.Devices.all(conf.parallel)
        self._state = self._devices.place(jax.tree.map(np.asarray, state))
        self._step = whole.on(self._devices, state)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """The metrics, once the state is there too; the batch's transfer is part of it."""
        self._state, metrics = self._step(self._state, self._devices.split(batch))
        jax.block_until_ready(self._state)
        return self._devices.fetch(metrics)


def _still(model: VisualSemanticModel) -> VisualSemanticModel:
    """The model without the dropout that is its networks' own."""

    def calm(encoder: Any) -> Any:
        if encoder is None or not hasattr(encoder.head, "dropout"):
            return encoder
        return encoder.clone(head=encoder.head.clone(dropout=0.0))

    generator = model.generator and model.generator.clone(dropout=0.0)
    return model.clone(image=calm(model.image), text=calm(model.text), generator=generator)


def flops(conf: ConfigDict, tokens: float, features: int) -> float:
    """FLOPs of the products that a step cannot do without, for its real tokens alone.

    6 N 3h (e + h): the GRU's input and state products forward, and two of each backward, for
    N tokens, words of e and a state of h; 4 b f h: the images' linear layer and its weights'
    gradient; 2 b^2 h: the scores, once. Adam, gates, norms and gathers are not counted.
    """
    b, h, e = conf.train.batch_size, conf.model.dimension, conf.model.text.words
    return 6 * tokens * 3 * h * (e + h) + 4 * b * features * h + 2 * b * b * h


def measure(
    conf: ConfigDict, captions: Captions, rounds: int, compiled: bool, peak_gflops: float
) -> list[Row]:
    """Rows of the step of `conf` and, where PyTorch is installed, of its twins."""
    ours = OurStep(conf, captions.vocabulary)
    features = ours.params["image"]["head"]["project"]["kernel"].shape[0]
    given = batches(captions, conf.train.batch_size, features)
    steps: dict[str, Callable[[Batch], Any]] = {"ours": ours}
    if importlib.util.find_spec("torch") is not None:
        still = without_dropout(conf)
        ((_, twin),) = twins(still, ours.params, False, given[0])
        agree(OurStep(still, captions.vocabulary), twin, given[:3])
        steps |= dict(twins(conf, ours.params, compiled, given[0]))
    timings = alternately(
        {
            name: lambda number, step=step: step(given[number % len(given)])
            for name, step in steps.items()
        },
        rounds,
    )
    tokens = float(np.mean([batch["token_mask"].sum() for batch in given]))
    return _rows(conf, captions, timings, tokens, features, peak_gflops)


def twins(
    conf: ConfigDict,
    params: Any,
    compiled: bool,
    batch: Batch,
    function_words: tuple[int, ...] = (),
) -> Iterator[tuple[str, Callable[[Batch], Any]]]:
    """PyTorch's step from the same weights: eager and, if asked for and possible, compiled."""
    from benchmarks.torch_twins import TrainStep

    twin = partial(TrainStep, params, conf, function_words=function_words)
    yield TORCH, twin(compiled=False)
    if compiled and compiles(by_compiler := twin(compiled=True), [batch]):
        yield COMPILED, by_compiler


def compiles(twin: Callable[[Batch], Any], given: list[Batch]) -> bool:
    """Whether torch.compile takes the step for these batches; if not, stderr says why."""
    try:
        for batch in given:  # widths differ, and each may be compiled for
            twin(batch)
    except Exception as error:  # whatever PyTorch's compiler raises on this machine
        reason = str(error).strip().splitlines()[0]
        sys.stderr.write(f"torch.compile does not work here: {reason}\n")
        return False
    return True


def agree(
    ours: Callable[[Batch], Any],
    twin: Callable[[Batch], Any],
    given: list[Batch],
    gradient: float = 1e-3,
) -> None:
    """Steps both from the same weights; raises AssertionError unless they do the same.

    The first loss to 1e-4; the gradient's norm to `gradient`, losses after updates to 1e-3.
    """
    for number, batch in enumerate(given):
        metrics, (loss, norm) = ours(batch), twin(batch)
        found, wanted = (float(metrics["loss"]), float(loss))
        tolerance = 1e-3 if number else 1e-4
        close = abs(found - wanted) <= tolerance * abs(wanted)
        assert close, f"loss of batch {number}: {found} of ours, {wanted} of the twin"
        found, wanted = float(metrics["gradient_norm"]), float(norm)
        close = abs(found - wanted) <= gradient * wanted
        assert close, f"gradient's norm of batch {number}: {found} of ours, {wanted} of the twin"


def _rows(
    conf: ConfigDict,
    captions: Captions,
    timings: dict[str, Timing],
    tokens: float,
    features: int,
    peak_gflops: float,
) -> list[Row]:
    work = flops(conf, tokens, features) * 1e-9
    what = f"batch {conf.train.batch_size}, {tokens:.0f} tokens; {captions.source}"
    rows = [Row("step", "products of a step", work, "GFLOP", note="6N3h(e+h) + 4bfh + 2bbh")]
    for name, timing in timings.items():
        share = work / timing.median / peak_gflops
        note = f"{100 * share:.0f}% of {peak_gflops:.0f} GFLOP/s; {what}"
        rows.append(rate("step", name, timing, 1, "steps/s", note))
    for name, timing in timings.items():
        if name != "ours":
            quantity = f"time of ours / {name}"
            rows.append(ratio("step", quantity, timings["ours"], timing, at_most=1.0))
    return rows
