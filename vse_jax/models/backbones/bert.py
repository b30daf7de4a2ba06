"""BERT, with the public weights of Hugging Face, sentence-transformers' included.

Source: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, NAACL 2019; fields
after `transformers`' BertModel, with which the tests compare.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int

from vse_jax.models.backbones import transformer, weights
from vse_jax.models.backbones.feature_map import WordFeatures
from vse_jax.models.backbones.weights import WeightsError

RULES: weights.Rules = [
    (r"^words$", "embeddings/word_embeddings/weight"),
    (r"^positions$", "embeddings/position_embeddings/weight"),
    (r"^types$", "embeddings/token_type_embeddings/weight"),
    (r"^norm/", "embeddings/LayerNorm/"),
    (r"^layer_(\d+)/", r"encoder/layer/\1/"),
    (r"/attention/(query|key|value)/", r"/attention/self/\1/"),
    (r"/attention/out/", "/attention/output/dense/"),
    (r"/norm1/", "/attention/output/LayerNorm/"),
    (r"/norm2/", "/output/LayerNorm/"),
    (r"/mlp/fc1/", "/intermediate/dense/"),
    (r"/mlp/fc2/", "/output/dense/"),
]

_PREFIX = "bert."
# What the first checkpoints, converted from TensorFlow, call a layer norm's scale and bias.
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class BERT(transformer.TextTower):
    """The words of sentences in context, and their mean; defaults are bert-base-uncased's.

    Attributes:
      type_vocab_size: token types, of which every token here is the first.
    """

    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    type_vocab_size: int = 2

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"], *, train: bool
    ) -> WordFeatures:
        """The last block's words; `pooled` is the mean of those that `mask` keeps.

        The mean is what sentence-transformers' models such as all-MiniLM-L6-v2 are trained for;
        of a sentence without words it is zero. Dropout needs the rng "dropout".
        """
        types = self.param(
            "types", nn.initializers.normal(0.02), (self.type_vocab_size, self.hidden_size)
        )
        x = self.parts().norm(name="norm")(self.embed(tokens) + types[None, :1])
        x = self.blocks(x, mask[:, None, None], train=train, pre_norm=False)
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
        total = jnp.sum(jnp.where(mask[..., None], x.astype(jnp.float32), 0.0), axis=1)
        return WordFeatures(x, (total / count).astype(x.dtype))


def make(configuration: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32) -> BERT:
    """The module that the weights' `config.json` describes; an empty one means BERT-base.

    Raises:
      WeightsError: it describes something else.
    """
    kind = configuration.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise WeightsError(
            f"config.json of the weights: position_embedding_type is {kind!r}, expected 'absolute'"
        )
    return transformer.make(BERT, configuration, ["bert"], dtype)


def load(source: str | Path, module: BERT) -> dict[str, Any]:
    """The variables of `module` in the weights of `source`; its heads and pooler are left out.

    Raises:
      WeightsError: weights are missing, damaged or do not fit the module.
    """
    folder = weights.locate(source)
    tensors = {
        re.sub("|".join(map(re.escape, _OLD)), lambda old: _OLD[old[0]], name): tensor
        for name, tensor in weights.load_safetensors(folder).items()
    }
    # Classes with a head save the tower's tensors with the prefix.
    rules, ignore = RULES, [r"^pooler\.", r"^cls\."]
    if any(name.startswith(_PREFIX) for name in tensors):
        rules, ignore = [*RULES, (r"^", _PREFIX)], [r"^(?!bert\.)", r"^bert\.pooler\."]
    return transformer.load(tensors, module, rules, ignore=ignore, source=folder)
