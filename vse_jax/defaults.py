"""Every field of a config with its default: the one list of them.

Presets change the values, users set any field from the command line, and `config_checks.validate`
compares with it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def default_config() -> ConfigDict:
    """A new config with every field at its default."""
    config = ConfigDict()
    # Of everything random: parameters, data order, augmentation, dropout.
    config.seed = 0
    # Maps the step over devices: "shard_map", or "pmap" (the same numbers, in maintenance mode).
    config.parallel = "shard_map"
    # Of the computation: "float32", on accelerators too, or "bfloat16"; parameters and losses stay
    # float32.
    config.precision = "float32"
    config.data = _data()
    config.model = _model()
    config.objective = _objective()
    config.train = _train()
    config.evaluate = _evaluate()
    return config


def _data() -> ConfigDict:
    """Data sets, pictures and tokens."""
    data = ConfigDict()
    # A function of vse_jax.data.datasets: "shapes", "flickr8k", "flickr30k", "coco", "iaprtc12",
    # "cub", "flowers", "custom" or "precomputed".
    data.dataset = "shapes"
    # Where the data set as downloaded lies, or TFDS' data_dir ("coco", "cub" and "flowers").
    data.manual_dir = placeholder(str)
    # The file that lists your own pictures and captions ("custom"); or a folder of features and
    # captions in the layout of SCAN ("precomputed").
    data.path = placeholder(str)
    # Features of the pictures that the file lists, in their stead: a BUTD .tsv, or a folder of
    # .tsv, of an .npz a picture, or that scripts/extract_features.py wrote. It makes the data set
    # "precomputed" and leaves the backbone out.
    data.features = placeholder(str)
    # Regions of the pictures: a file of scripts/propose_regions.py, or of your own, with lines
    # {"image": name, "boxes": [[y0, x0, y1, x1], ...]}; unset: the data's own boxes
    # (model.image.features=boxes).
    data.boxes = placeholder(str)
    # Regions in place of the pictures, each with what is said of it as its captions: a file of
    # python -m vse_jax.align --snippets, or of your own, with lines {"image": name, "box": [y0, x0,
    # y1, x1], "snippet": words}. Limits count whole pictures.
    data.snippets = placeholder(str)
    # Classes of the pictures: a file of scripts/head_noun_labels.py, or of your own, with lines
    # {"image": name, "label": class name}; unset: the data's own labels, if they have any.
    data.labels = placeholder(str)
    # The folder that the paths in that file of pictures are relative to; unset: the file's own.
    data.images = placeholder(str)
    # Where prepared data sets and cached features go.
    data.data_dir = "~/.cache/vse_jax"
    # Training, validation and test pictures drawn for "shapes".
    data.shapes_sizes = (4000, 500, 500)
    # Factor on the specks and scratches of "shapes"; those above 1 have the colours of objects.
    data.shapes_clutter = 1.0
    # Largest share of an object of "shapes" that those in front of it may cover.
    data.shapes_hidden = 0.35
    # Fewest and most objects of a scene of "shapes".
    data.shapes_objects = (1, 4)
    # Kinds of the captions of a scene of "shapes"; one told twice is worded twice.
    data.shapes_captions = ("whole", "part", "relation", "count", "vague")
    # Whether the pictures that Karpathy calls "restval" are training pictures ("coco", "custom" and
    # "precomputed"), or are left out.
    data.restval = True
    # What the test split is reported by, of vse_jax.protocols, such as "coco_5k" ("custom" and
    # "precomputed"; it must have the size for it); unset: the data set's own name and size.
    data.protocol = placeholder(str)
    # At most this many of the training split's pictures, the first ones; unset: all.
    data.train_limit = placeholder(int)
    # Likewise of the validation split's.
    data.validation_limit = placeholder(int)
    # Pictures are resized to this many pixels a side.
    data.image_size = 224
    # Shares of a picture's area that a random training crop may keep; (1.0, 1.0): no crop.
    data.crop_area = (1.0, 1.0)
    # Whether training pictures are mirrored at random.
    data.flip = False
    # An epoch is every training caption once ("captions") or every picture once with a
    # caption drawn at random ("images").
    data.epoch = "captions"
    # Which tokenizer: "vse" (words seen 4 times, others <unk>), "dvsa" (5 times, others dropped) or
    # "pretrained", that of model.text.weights.
    data.tokenizer = "vse"
    # Captions are cut to this many tokens, <start> and <end> included.
    data.max_tokens = 40
    # More than this share of unusable or missing pictures is an error; fewer are skipped and named.
    data.bad_share = 0.01
    # Grey, CMYK, palette and transparent pictures: "skip" (counted, named) or "convert".
    data.non_rgb = "skip"
    # What training captions mean, for margins that depend on it: a .npy file [captions, width], a
    # row for each in their order, or an .npz of scripts/caption_semantics.py; unset: latent
    # semantic analysis, computed once.
    data.semantics = placeholder(str)
    # Breaks the pairing of training captions and pictures: a control that must end at chance.
    data.shuffle_captions = False
    return data


def _model() -> ConfigDict:
    """The two encoders and the common space."""
    model = ConfigDict()
    # What is put on top of the features, a function of vse_jax.models.networks: "vsepp", "vsrn",
    # "saf", "sgr", "vse_infinity", "dvsa", "residual" (a perceptron for good features), or "none",
    # for features that are in one space already; "multimodal_rnn", which writes captions; or "cam",
    # which tells classes and writes captions.
    model.network = "vsepp"
    # Width of the common space; that of the features for "none".
    model.dimension = 1024
    # Units between, of the network "residual"; of the states of "brnn" and of what writes captions.
    model.hidden = 1024
    # (pictures, captions) that a pairwise network ("saf", "sgr", "dvsa") looks at at a time; in
    # training SAF holds what it knows of all the batch's pictures with so many captions.
    model.tile = (4, 16)
    # Of two embeddings: "dot" (the cosine, of unit vectors) or "negative_euclidean". "saf", "sgr"
    # and "dvsa" have their own.
    model.similarity = "dot"
    # Whether embeddings are scaled to length 1.
    model.normalize = True
    model.image = image = ConfigDict()
    # Of vse_jax.models.backbones.catalogue: "clip", "mobilenet_v2", "resnet", "siglip",
    # "small_resnet", "vgg19" or "vit"; "none" where the data are features ("precomputed").
    image.backbone = "small_resnet"
    # Pretrained weights: a folder, a safetensors file or a Hugging Face hub name.
    image.weights = placeholder(str)
    # What the backbone hands on: "pooled" (one vector a picture), "grid" (one a cell), "pyramid"
    # (the grid pooled to cells x cells, and its mean) or "boxes" (the grid's mean under each box of
    # data.boxes, and of the whole).
    image.features = "pooled"
    # Cells a side of a "pyramid".
    image.cells = 4
    # How one vector comes of these, where the network does not say: their "mean", each channel's
    # "max", or "mean_max", both.
    image.pooling = "mean"
    # Whether a backbone that is trained further keeps the batch statistics that its weights have,
    # as in evaluation (nor has it dropout then): for weights whose batch norms are folded into the
    # convolutions, and for small batches.
    image.keep_statistics = False
    # Whether feature vectors are scaled to length 1 first.
    image.normalize_features = False
    # Share of feature channels dropped in training.
    image.dropout = 0.0
    # What "vsrn" scales to length 1 before and after its graph: each channel over the picture's
    # "regions", as the released code does, or the "channels" of each region.
    image.scaled_over = "regions"
    # Share of a picture's parts dropped in training by "vse_infinity", so that sets vary in size.
    image.drop_parts = 0.2
    model.text = text = ConfigDict()
    # What reads sentences: "gru" or "brnn" (a rectified network in both directions), trained from
    # nothing, or a module of vse_jax.models.backbones with pretrained weights: "bert", "clip" or
    # "siglip".
    text.backbone = "gru"
    # Pretrained weights, as those of pictures.
    text.weights = placeholder(str)
    # What it hands on: "pooled" (one vector a sentence: a GRU's last state) or "words" (one each).
    text.features = "pooled"
    # How one vector comes of these, where the network does not say: "mean", "max" or "mean_max".
    text.pooling = "mean"
    # Width of a word vector of what is trained from nothing, or writes captions.
    text.words = 300
    # Vectors to start the words from: a file in GloVe's text format, of width model.text.words.
    text.glove = placeholder(str)
    # Share of word-vector channels dropped in training; of feature channels, if pretrained.
    text.dropout = 0.0
    # Whether the GRU reads captions in both directions, averaged.
    text.bidirectional = False
    # Share of the tokens altered in training: half masked, a tenth any other, the rest deleted.
    text.alter = 0.0
    model.captioner = captioner = ConfigDict()
    # Cell of what writes captions: "rnn" (rectified) or "lstm".
    captioner.cell = "rnn"
    # Share of the channels of words, of the picture and of the states read dropped in training.
    captioner.dropout = 0.5
    return model


def _objective() -> ConfigDict:
    """The terms of the loss; those of weight 0 are left out."""
    objective = ConfigDict()
    objective.triplet = _triplet()
    objective.infonce = _infonce()
    objective.sigmoid = _sigmoid()
    objective.generation = generation = ConfigDict()
    # Weight in the loss of telling the caption from the picture ("vsrn", "multimodal_rnn", "cam");
    # 0 leaves it out.
    generation.weight = 0.0
    objective.classification = classification = ConfigDict()
    # Weight in the loss of telling the class of a picture ("cam"); 0 leaves it out.
    classification.weight = 0.0
    objective.disagreement = disagreement = ConfigDict()
    # Weight in the loss of the class's map and the caption's being different ("cam"); 0 leaves it
    # out.
    disagreement.weight = 0.0
    # How different: "cosine" (1 - cos), or of maps with a sum of 1 the squared distance ("l2") or
    # the symmetric divergence ("kl").
    disagreement.kind = "cosine"
    # Whether the words' gradients, which weigh the caption's map, are differentiated too, and no
    # constants.
    disagreement.second_order = False
    objective.embedding = embedding = ConfigDict()
    # Weight in the loss of pictures' embeddings being far from their sentences' ("cam"); 0 leaves
    # it out, and with it what reads sentences.
    embedding.weight = 0.0
    # How far: by a cross-entropy over the batch ("contrast"), or 1 - cos ("cosine"), which has no
    # negatives and ends with all pictures and sentences at one place.
    embedding.kind = "contrast"
    # Divides the cosines of "contrast".
    embedding.temperature = 0.05
    objective.leap = _leap()
    objective.center = _center()
    objective.quantizer = _quantizer()
    objective.multitask = _multitask()
    return objective


def _triplet() -> ConfigDict:
    """The triplet hinge."""
    triplet = ConfigDict()
    # Weight of the hinge in the loss; 0 leaves it out.
    triplet.weight = 1.0
    # Which negatives: "hardest" (LMH) or "all" (LSH).
    triplet.negatives = "hardest"
    # How much more similar a caption must be to its picture than to another.
    triplet.margin = 0.2
    # How much wider the margin is to a caption that means the same (LSEH); 0: one for all.
    triplet.semantic = 0.0
    # Epochs of a softer loss before the hardest ones are mined; 0 courts the collapse.
    triplet.warmup_epochs = 1.0
    # The softer loss: the hinge over "all" negatives, the cross-entropy over them ("infonce") or,
    # cheap for "saf" and "sgr", over 15 drawn ones ("grouped").
    triplet.warmup = "all"
    # Divides the similarities in that cross-entropy.
    triplet.temperature = 0.05
    # Pairs scored at a time while mining: memory grows with rows x chunk.
    triplet.chunk = 4096
    return triplet


def _infonce() -> ConfigDict:
    """The cross-entropy over the batch."""
    infonce = ConfigDict()
    # Weight of the cross-entropy over the batch (InfoNCE) in the loss; 0 leaves it out.
    infonce.weight = 0.0
    # Divides the similarities.
    infonce.temperature = 0.07
    # Pairs scored at a time: memory grows with rows x chunk.
    infonce.chunk = 4096
    # Whether the temperature is learned, from that one on.
    infonce.learned = False
    # How embeddings meet those of other devices: all on all devices ("gather"), or one device's
    # after the other's ("ring"), in memory for one device's.
    infonce.exchange = "gather"
    return infonce


def _sigmoid() -> ConfigDict:
    """The sigmoid loss over all pairs of the batch."""
    sigmoid = ConfigDict()
    # Weight of the sigmoid loss (SigLIP) in the loss; 0 leaves it out.
    sigmoid.weight = 0.0
    # Divides the similarities, at the start: it is learned.
    sigmoid.temperature = 0.1
    # Added to them then, likewise: far below 0, as nearly all pairs of a batch are wrong ones.
    sigmoid.bias = -10.0
    # Pairs scored at a time: memory grows with rows x chunk.
    sigmoid.chunk = 4096
    # As of the cross-entropy.
    sigmoid.exchange = "ring"
    return sigmoid


def _leap() -> ConfigDict:
    """LEAP's hinge on distances, whose margin adapts."""
    leap = ConfigDict()
    # Weight of the adaptive-margin hinge on distances in the loss; 0 leaves it out. Center loss and
    # quantizer may stand beside another objective, where the similarity is a distance.
    leap.weight = 0.0
    # Which negatives: "hardest" or "all".
    leap.negatives = "hardest"
    # Epochs of a softer loss before the hardest ones are mined; 0 courts the collapse.
    leap.warmup_epochs = 2.0
    # The softer loss: the hinge over "all" negatives, or the cross-entropy over them ("infonce").
    leap.warmup = "all"
    # Divides the distances in that cross-entropy.
    leap.temperature = 0.05
    # The margin at the start.
    leap.margin = 0.2
    # How it moves: "fixed", "gap" (towards kappa x (mean d_neg - mean d_pos)) or "active" (up
    # while fewer than active_share of the hardest negatives cost something, else down).
    leap.rule = "gap"
    # How slowly: the share of the margin, and of the running distances, that stays at a step.
    leap.rho = 0.99
    # Factor of "gap".
    leap.kappa = 0.5
    # Share aimed at by "active".
    leap.active_share = 0.8
    # Lower bound of the margin.
    leap.least = 0.05
    # Upper bound of the margin.
    leap.most = 0.5
    # Whether each pair has its own margin, smaller for concepts that mean nearly the same.
    leap.pair_margins = False
    # Lower bound of a pair's margin over the margin.
    leap.pair_low = 0.5
    # Upper bound of a pair's margin over the margin.
    leap.pair_high = 1.5
    # Weight in the loss of the same hinge on the quantized embeddings.
    leap.quantized = 0.0
    # In that hinge the distances of embeddings to quantized ones ("asymmetric", as codes are
    # searched), or of quantized ones to each other ("symmetric").
    leap.quantized_distance = "asymmetric"
    # Pairs scored at a time: memory grows with rows x chunk.
    leap.chunk = 4096
    return leap


def _center() -> ConfigDict:
    """The center loss."""
    center = ConfigDict()
    # Weight of the center loss in the loss; 0 leaves it out.
    center.weight = 0.0
    # Centers: a "table" of one a training picture, in the state, or the means of the "batch".
    center.kind = "table"
    # How far a center of the table moves at a step.
    center.alpha = 0.5
    return center


def _quantizer() -> ConfigDict:
    """The product quantizer."""
    quantizer = ConfigDict()
    # Weight of the quantizer's commitment term in the loss; 0 leaves the quantizer out.
    quantizer.weight = 0.0
    # Factor of the commitment.
    quantizer.beta = 0.25
    # Parts of an embedding (M): the bytes that it is stored in.
    quantizer.parts = 32
    # Codes of each part (K), at most 256; FAISS takes powers of two.
    quantizer.codes = 256
    # How the codebook moves: by moving "average" or by "gradient".
    quantizer.rule = "average"
    # Decay of the moving average.
    quantizer.decay = 0.99
    # Rate of the gradient descent.
    quantizer.rate = 0.1
    # A code chosen less often than this share of an even choice is put on another embedding.
    quantizer.dead_share = 0.01
    # Shares of the training, such as (0.25, 0.5), after which the codebook begins anew in the
    # principal axes of the embeddings; before the first the quantizer costs nothing, and soon
    # after any the codes are worse for a while. (): it begins at once, in the axes as they are.
    quantizer.rotate_at = ()
    return quantizer


def _multitask() -> ConfigDict:
    """The cross-entropy against the other side's codes."""
    multitask = ConfigDict()
    # Weight of the cross-entropy against the other side's codes; 0 leaves it out.
    multitask.weight = 0.0
    # Divides the squared distances to the codes.
    multitask.temperature = 0.1
    return multitask


def _train() -> ConfigDict:
    """Length, optimizer, what learns, and how often what is saved."""
    train = ConfigDict()
    # Workdir of a trained model of the same shapes, whose best parameters (averaged ones, if it has
    # them), batch statistics and words this training starts from.
    train.start_from = placeholder(str)
    # Pattern of the whole names of those parameters and statistics, such as "image/backbone/.*", to
    # start with a part of another model: the rest, and the words, are then as without it.
    train.start_parts = ".*"
    # Length of the training in epochs.
    train.epochs = 10.0
    # Length of the training in steps; where it is given, `epochs` does not count.
    train.steps = placeholder(int)
    # Pairs a step, over all devices.
    train.batch_size = 128
    # Parts that a device's pairs of a batch are encoded in, one after the other, in memory for one
    # part; all pairs of the batch are each other's negatives all the same. Encodes twice above 1.
    train.accumulate = 1
    # Whether backbones compute each block again in the backward pass, in memory for what goes into
    # the blocks, and do not keep what is inside.
    train.remat = False
    # Rule of the update: "adam", "sgd" (with momentum) or "rmsprop".
    train.optimizer = "adam"
    # Whether each device holds an equal share of what the rule keeps of every parameter, and not
    # all of it.
    train.shard_optimizer = False
    # Share of the last step that "sgd" takes again.
    train.momentum = 0.9
    # Decay of the mean square of gradients that "rmsprop" divides by.
    train.rms_decay = 0.999
    # Peak learning rate.
    train.learning_rate = 2e-4
    # How it falls: "cosine" (to 0 at the end), "constant", or "step" (x decay_factor at each of
    # decay_steps).
    train.schedule = "cosine"
    # Steps at which "step" decays. Published schedules are in epochs of other data sets: steps of
    # these, epochs x captions / batch size, are what carries over.
    train.decay_steps = (10_000,)
    # Factor of each decay of "step".
    train.decay_factor = 0.1
    # Epochs of linear rise to the peak.
    train.warmup_epochs = 0.0
    # Decoupled weight decay (as AdamW's), of matrices only.
    train.weight_decay = 0.0
    # Largest size of each number in the gradient; None: no clipping of this kind.
    train.clip_value = placeholder(float)
    # Largest global norm of the gradient; None: no clipping of this kind.
    train.clip_norm = placeholder(float)
    # Decay of a moving average of the parameters, used for evaluation; 0: none. At step t it
    # is at most (1 + t) / (10 + t).
    train.ema = 0.0
    # Rounds of k-means that in the end fit the codebook of the best checkpoint, if it has one, to
    # training pairs as they are searched: without dropout, by the averaged parameters; 0: none.
    train.refit_codes = 10
    # (pattern, factor) pairs: the first pattern that matches the whole name of a parameter
    # multiplies its learning rate; None freezes it, e.g. (("image/backbone/.*", None),). A side
    # whose backbone is frozen whole has its features computed once.
    train.freeze = ()
    # Steps between log lines.
    train.log_every = 20
    # Steps between checkpoints, besides one at the end of every epoch.
    train.checkpoint_every = 500
    # Epochs between validations.
    train.validate_every = 1.0
    return train


def _evaluate() -> ConfigDict:
    """Evaluation and the report."""
    evaluate = ConfigDict()
    # Pictures or captions encoded at a time, over all devices.
    evaluate.batch_size = 256
    # Queries each way shown in the report.
    evaluate.queries = 12
    # Captions kept by the search for the best one.
    evaluate.beams = 7
    # What is best: log p / length ** length_power; 0 is the most likely caption.
    evaluate.length_power = 0.0
    # What it is worth that neighbouring words are about one region ("dvsa"), in units of the
    # products of words and regions; 0: each word finds its own. What the validation split of
    # "shapes" preferred.
    evaluate.beta = 1.5
    # Judgements of people to be correlated with distances: a file in Flickr8k-Expert's format.
    evaluate.expert = placeholder(str)
    # The same in Flickr8k-CrowdFlower's format.
    evaluate.crowdflower = placeholder(str)
    return evaluate
