"""The systems, as settings of a config: what the files of `configs/` share."""

from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from vse_jax.config import ConfigError

Setting = Callable[[ConfigDict], None]


def frozen_mobilenet_v2(config: ConfigDict) -> None:
    """Pictures as the public MobileNetV2 sees them: features of length 1, computed once.

    Rate, dropout and moving average are those that Flickr8k's validation split preferred;
    width and batch size are the defaults, as published for VSE++.
    """
    config.model.image.backbone = "mobilenet_v2"
    config.model.image.weights = "google/mobilenet_v2_1.0_224"
    config.model.image.normalize_features = True
    config.model.image.dropout = 0.2
    config.model.text.dropout = 0.4
    config.data.max_tokens = 32
    config.train.freeze = (("image/backbone/.*", None),)
    config.train.epochs = 8.0
    config.train.learning_rate = 2e-3
    config.train.clip_norm = 2.0
    config.train.ema = 0.998


def bert(config: ConfigDict) -> None:
    """Sentences as the public MiniLM reads them, trained further at a tenth of the rate.

    The factor is that of Chen et al., CVPR 2021.
    """
    _minilm(config, 0.1)


def frozen(config: ConfigDict) -> None:
    """Small heads over two towers that are used as they are: a run of seconds.

    Sentences as the public MiniLM sees them, pictures as MobileNetV2 does. What Flickr8k's
    validation split preferred.
    """
    if config.model.image.weights is None:
        frozen_mobilenet_v2(config)
    _minilm(config, None)
    config.model.network = "residual"
    config.model.dimension = 512
    config.model.text.features = "pooled"
    config.model.image.dropout = config.model.text.dropout = 0.4


def _minilm(config: ConfigDict, rate: float | None) -> None:
    """MiniLM at a share of the learning rate; None: as it is."""
    config.model.text.backbone = "bert"
    config.model.text.weights = "sentence-transformers/all-MiniLM-L6-v2"
    config.model.text.bidirectional = False
    config.data.tokenizer = "pretrained"
    config.train.freeze += (("text/reader/.*", rate),)


def clip(config: ConfigDict) -> None:
    """Both towers of CLIP, to be used as they are or trained further, slowly.

    Source: Radford et al., ICML 2021; weights of the size that the hub has as safetensors. Rate and
    weight decay are usual ones, not tuned here.
    """
    _two_towers(config, "clip", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    config.data.max_tokens = 77


def siglip(config: ConfigDict) -> None:
    """Both towers of SigLIP, likewise. Source: Zhai et al., ICCV 2023."""
    _two_towers(config, "siglip", "google/siglip-base-patch16-224")
    config.data.max_tokens = 64


def _two_towers(config: ConfigDict, backbone: str, weights: str) -> None:
    config.model.network = "none"
    for side in (config.model.image, config.model.text):
        side.backbone, side.weights, side.dropout = backbone, weights, 0.0
        side.features, side.pooling = "pooled", "mean"
    config.model.image.normalize_features = False
    config.model.text.bidirectional = False
    config.data.tokenizer = "pretrained"
    config.data.image_size = 224
    config.objective.infonce.temperature = 0.01
    config.train.freeze = ()
    config.train.learning_rate = 1e-5
    config.train.weight_decay = 0.1
    config.train.ema = 0.0


def lmh(config: ConfigDict) -> None:
    """The hinge with the hardest negatives, after two epochs of cross-entropy.

    These epochs keep it from collapsing. Source: Faghri et al., VSE++, BMVC 2018.
    """
    config.objective.triplet.warmup_epochs = 2.0
    config.objective.triplet.warmup = "infonce"


def lseh(config: ConfigDict) -> None:
    """The hinge with semantically enhanced hard negatives. Source: Gong & Cosma, 2023."""
    lmh(config)
    config.objective.triplet.margin = 0.185
    config.objective.triplet.semantic = 0.025


def lsh(config: ConfigDict) -> None:
    """The hinge with all negatives. Source: Kiros et al., 2014."""
    config.objective.triplet.negatives = "all"


def infonce(config: ConfigDict) -> None:
    """The cross-entropy over the batch. Source: Radford et al., CLIP, ICML 2021."""
    config.objective.triplet.weight = 0.0
    config.objective.infonce.weight = 1.0
    config.objective.infonce.temperature = 0.05


def sigmoid(config: ConfigDict) -> None:
    """The sigmoid loss over all pairs of the batch. Source: Zhai et al., SigLIP, ICCV 2023."""
    config.objective.triplet.weight = 0.0
    config.objective.sigmoid.weight = 1.0


def leap_fixed(config: ConfigDict) -> None:
    """The hinge on Euclidean distances with a fixed margin, the first part of LEAP.

    At the rate used here it collapses on Flickr8k after epochs over all negatives, and does not
    after as many of the cross-entropy.
    """
    config.model.similarity = "negative_euclidean"
    config.objective.triplet.weight = 0.0
    config.objective.leap.weight = 1.0
    config.objective.leap.rule = "fixed"
    config.objective.leap.warmup = "infonce"


def leap_adaptive(config: ConfigDict) -> None:
    """A margin that follows the distances."""
    leap_fixed(config)
    config.objective.leap.rule = "gap"


def leap_centers(config: ConfigDict) -> None:
    """And the center loss.

    Its weight, like those of the terms below, stands beside a hinge that is the sum over a batch
    of 128 pairs, and is what Flickr8k's validation split preferred.
    """
    leap_adaptive(config)
    config.objective.center.weight = 30.0


def leap_quantizer(config: ConfigDict) -> None:
    """And the quantizer, in the principal axes of the embeddings."""
    leap_centers(config)
    config.objective.quantizer.weight = 32.0
    config.objective.quantizer.rotate_at = (0.25, 0.5, 0.75)
    config.objective.leap.quantized = 0.5


def leap_multitask(config: ConfigDict) -> None:
    """And the cross-entropy against the other side's codes."""
    leap_quantizer(config)
    config.objective.multitask.weight = 3.0
    config.objective.multitask.temperature = 0.003


def leap(config: ConfigDict) -> None:
    """LEAP whole: each pair's own margin too. See `objectives/leap.py`."""
    leap_multitask(config)
    config.objective.leap.pair_margins = True
    config.objective.leap.pair_low = 0.8
    config.objective.leap.pair_high = 1.2


def regions(config: ConfigDict) -> None:
    """Pictures as sets of parts: the 17 cells of a pyramid, where they are not sets already."""
    if config.model.image.features == "pooled":
        config.model.image.features = "pyramid"


def words(config: ConfigDict) -> None:
    """Sentences as sets of words, read in both directions."""
    config.model.text.features = "words"
    config.model.text.pooling = "mean"
    config.model.text.bidirectional = True


def vse_infinity(config: ConfigDict) -> None:
    """Sets of regions and of words, pooled as is learned. Source: Chen et al., CVPR 2021."""
    regions(config)
    words(config)
    config.model.network = "vse_infinity"
    config.model.text.alter = 0.2


def vsrn(config: ConfigDict) -> None:
    """Regions that are reasoned over, captions told from them. Source: Li et al., ICCV 2019."""
    regions(config)
    config.model.network = "vsrn"
    config.model.dimension *= 2
    config.objective.generation.weight = 1.0
    # At 2e-3, good for VSE++, it was far behind on a quarter of Flickr8k's photos, 1,024 wide.
    config.train.learning_rate = 5e-4


def saf(config: ConfigDict) -> None:
    """Words and regions compared in pairs, filtered. Source: Diao et al., AAAI 2021."""
    regions(config)
    words(config)
    config.model.network = "saf"
    # The other softer losses need the gradient of every pair's score.
    config.objective.triplet.warmup = "grouped"
    # At twice this rate it was behind, on a quarter of Flickr8k's photos.
    config.train.learning_rate = 1e-3
    # Of words, as published; the other networks' is what a data set prefers.
    config.model.text.dropout = 0.4


def sgr(config: ConfigDict) -> None:
    """The same, reasoned over. Source: Diao et al., AAAI 2021."""
    saf(config)
    config.model.network = "sgr"


def dvsa(config: ConfigDict) -> None:
    """Words that each find their region, by the products summed over a sentence.

    The structured max-margin objective over all negatives, momentum and clipping are as published;
    LSEH's margins have the same shares of a margin of 1 as of 0.2.
    The rate is that of 1e-3 and 1e-4 which a quarter of Flickr8k's photos preferred: by the former
    scores grow without end. Source: Karpathy & Fei-Fei, CVPR 2015, section 3.1.
    """
    regions(config)
    config.data.tokenizer = "dvsa"
    config.model.network = "dvsa"
    config.model.normalize = False
    config.model.hidden = 512
    config.model.tile = (64, 32)
    config.model.text.backbone = "brnn"
    config.model.text.features = "words"
    config.model.text.bidirectional = False
    # Scores are products summed over words, not cosines: a margin of 1 in place of 0.2.
    config.objective.triplet.margin *= 5
    config.objective.triplet.semantic *= 5
    config.objective.triplet.temperature = 1.0
    config.objective.infonce.temperature = 1.0
    config.objective.sigmoid.temperature = 1.0
    config.train.optimizer = "sgd"
    config.train.clip_norm = None
    config.train.clip_value = 5.0
    config.train.learning_rate = 1e-4


def multimodal_rnn(config: ConfigDict) -> None:
    """DVSA's generator: a rectified network writes the caption of a whole picture.

    RMSprop, its rate, clipping, dropout and beams are as published or released. Source: Karpathy &
    Fei-Fei, CVPR 2015, section 3.2.
    """
    config.data.tokenizer = "dvsa"
    config.model.network = "multimodal_rnn"
    config.model.normalize = False
    # Of length 1 the picture is hardly heard.
    config.model.image.normalize_features = False
    config.model.hidden = 512
    config.model.text.words = 512
    config.model.text.bidirectional = False
    config.train.optimizer = "rmsprop"
    config.train.clip_norm = None
    config.train.clip_value = 5.0
    config.train.learning_rate = 1e-3


def likelihood(config: ConfigDict) -> None:
    """The likelihood of the captions."""
    config.objective.triplet.weight = 0.0
    config.objective.generation.weight = 1.0


def cam(config: ConfigDict) -> None:
    """Classes and captions of one embedding, read from the grid of the backbone."""
    config.data.tokenizer = "dvsa"
    config.model.network = "cam"
    config.model.normalize = False
    config.model.dimension = 512
    config.model.hidden = 512
    config.model.image.features = "grid"
    config.model.image.pooling = "mean"
    # Of length 1 the cells of a grid would all weigh the same, whatever is in them.
    config.model.image.normalize_features = False
    config.model.captioner.cell = "lstm"
    config.model.text.words = 512


def cam_classifier(config: ConfigDict) -> None:
    """The classifier alone."""
    config.objective.triplet.weight = 0.0
    config.objective.classification.weight = 1.0


def cam_captioner(config: ConfigDict) -> None:
    """The captioner alone."""
    likelihood(config)
    config.objective.generation.weight = 0.2
    config.objective.embedding.weight = 1.0


def cam_joint(config: ConfigDict) -> None:
    """Both."""
    cam_captioner(config)
    cam_classifier(config)


def cam_disagreement(config: ConfigDict) -> None:
    """Both, and what their maps disagree by. Idea: Yoon et al., ETRI Journal 42(1), 2020."""
    cam_joint(config)
    config.objective.disagreement.weight = 1.0


# Of each system the objectives it can be trained with.
_RANKING: dict[str, Setting] = {
    "lmh": lmh, "lseh": lseh, "lsh": lsh, "infonce": infonce, "sigmoid": sigmoid
}  # fmt: skip
_GOOD_FEATURES: dict[str, Setting] = {"infonce": infonce, **_RANKING}
SYSTEMS: dict[str, dict[str, Setting]] = {
    "vsepp": _RANKING,
    "vse_infinity": _RANKING,
    "vsrn": _RANKING,
    "saf": _RANKING,
    "sgr": _RANKING,
    "dvsa": {"lsh": lsh, **_RANKING},
    "multimodal_rnn": {"likelihood": likelihood},
    "cam": {
        "disagreement": cam_disagreement,
        "joint": cam_joint,
        "classifier": cam_classifier,
        "captioner": cam_captioner,
    },
    "frozen": _GOOD_FEATURES,
    "clip": _GOOD_FEATURES,
    "siglip": _GOOD_FEATURES,
    "leap": {
        "full": leap,
        "fixed": leap_fixed,
        "adaptive": leap_adaptive,
        "centers": leap_centers,
        "quantizer": leap_quantizer,
        "multitask": leap_multitask,
    },
}
# What reads sentences, where it is not a GRU.
READERS: dict[str, Setting] = {"bert": bert}
# Systems that say what reads sentences.
_OWN_READER = ("frozen", "clip", "siglip", "multimodal_rnn", "cam")
# What a system is besides its objective.
NETWORKS: dict[str, Setting] = {
    "vse_infinity": vse_infinity,
    "vsrn": vsrn,
    "saf": saf,
    "sgr": sgr,
    "dvsa": dvsa,
    "multimodal_rnn": multimodal_rnn,
    "cam": cam,
    "frozen": frozen,
    "clip": clip,
    "siglip": siglip,
}


def system(config: ConfigDict, choice: str, file: str, **defaults: str) -> None:
    """Settings of a system, its objective and its reader of sentences.

    Args:
      config: to change.
      choice: "system", "system,objective=name", "system,text=name" or both.
      file: of configs/, for messages.
      **defaults: of a system, the objective where `choice` names none; else its first.

    Raises:
      ConfigError: no such system, option, objective or reader.
    """
    name, *options = choice.split(",")
    if name not in SYSTEMS:
        raise ConfigError(f"{file} has no system {name!r}; it has {_listed(SYSTEMS)}")
    readers = {} if name in _OWN_READER else READERS
    chosen = {"objective": defaults.get(name, next(iter(SYSTEMS[name])))}
    for option in options:
        key, _, value = option.partition("=")
        known = {"objective": SYSTEMS[name], "text": readers}.get(key, {})
        if value not in known:
            also = f", and text={_listed(readers)}" if readers else ""
            raise ConfigError(
                f"{file}:{name} has no option {option!r}; it has objective="
                f"{_listed(SYSTEMS[name])}{also}"
            )
        chosen[key] = value
    SYSTEMS[name][chosen["objective"]](config)
    for setting in (NETWORKS.get(name), READERS.get(chosen.get("text", ""))):
        if setting is not None:
            setting(config)


def is_choice(text: str) -> bool:
    """Whether a text begins with the name of a system."""
    return text.split(",")[0] in SYSTEMS


def _listed(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))
