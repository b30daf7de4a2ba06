from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy

from vse_jax.models.backbones import catalogue, siglip, text_catalogue, weights
from vse_jax.models.backbones.weights import WeightsError

BLOCKS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
PAD = 1
TEXT = BLOCKS | {"vocab_size": 50, "max_position_embeddings": 12, "projection_size": 20}
VISION = BLOCKS | {"image_size": 32, "patch_size": 8}
LENGTHS = (7, 4, 1)


def noise(height, width, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def batch(length=7, behind=PAD):
    rng = np.random.default_rng(0)
    tokens = np.full((len(LENGTHS), length), behind, np.int32)
    mask = np.arange(length) < np.asarray(LENGTHS)[:, None]
    for row, count in enumerate(LENGTHS):
        tokens[row, : count - 1] = rng.integers(2, 50, count - 1)
        tokens[row, count - 1] = 1
    return tokens, mask


def module_of(folder, towers):
    extra = (jnp.float32, "data") if towers is catalogue else (jnp.float32,)
    module = towers.siglip.make(weights.load_config(folder), *extra)
    variables = towers.siglip.load(str(folder), module)
    return partial(jax.jit(partial(module.apply, train=False)), variables)


def compare_images(model, image, found):
    torch = parity.torch()
    scaled = (image.astype(np.float32) / 255 - 0.5) / 0.5
    with torch.no_grad():
        pixels = torch.from_numpy(scaled).permute(0, 3, 1, 2)
        out = model(pixels, interpolate_pos_encoding=True)
    cells = (image.shape[1] // 8, image.shape[2] // 8)
    pooled = out.pooler_output.numpy()
    assert pooled.std() > 0.1
    grid = out.last_hidden_state.numpy().reshape(len(image), *cells, -1)
    np.testing.assert_allclose(found.grid, grid, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-4, rtol=1e-4)


def compare_texts(model, folder):
    """A batch of any shorter length, with anything as padding, is the one padded to the full."""
    torch = parity.torch()
    with torch.no_grad():
        out = model(torch.from_numpy(batch(12)[0]).long())
    words, pooled = out.last_hidden_state.numpy(), out.pooler_output.numpy()
    assert pooled.std() > 0.1
    apply = module_of(folder, text_catalogue)
    for length, behind in ((12, PAD), (7, PAD), (9, 33)):
        tokens, mask = batch(length, behind)
        found = apply(jnp.asarray(tokens), jnp.asarray(mask))
        assert found.words.shape == (3, length, 32)
        np.testing.assert_allclose(found.pooled, pooled, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(
            np.asarray(found.words)[mask], words[:, :length][mask], atol=1e-4, rtol=1e-4
        )


@pytest.mark.torch
@pytest.mark.parametrize(
    ("config", "height", "width"), [({}, 32, 32), ({"hidden_act": "gelu"}, 40, 56)]
)
def test_both_towers_of_one_folder_are_those_of_transformers(tmp_path, config, height, width):
    library = parity.transformers()
    model = library.SiglipModel(
        library.SiglipConfig(text_config=TEXT | config, vision_config=VISION | config)
    )
    parity.saved(parity.randomize(model), tmp_path)
    image = noise(height, width)
    found = module_of(tmp_path, catalogue)(jnp.asarray(image))
    compare_images(model.vision_model, image, found)
    compare_texts(model.text_model, tmp_path)


@pytest.mark.torch
def test_towers_saved_alone_load(tmp_path):
    library = parity.transformers()
    model = parity.randomize(library.SiglipTextModel(library.SiglipTextConfig(**TEXT)))
    compare_texts(model, parity.saved(model, tmp_path / "text"))
    model = parity.randomize(library.SiglipVisionModel(library.SiglipVisionConfig(**VISION)))
    parity.saved(model, tmp_path / "vision")
    image = noise(32, 32)
    compare_images(model, image, module_of(tmp_path / "vision", catalogue)(jnp.asarray(image)))


@pytest.fixture
def tiny():
    module = siglip.make_text({"text_config": TEXT})
    init = jax.jit(partial(module.init, train=False))
    variables = init(jax.random.key(0), *map(jnp.asarray, batch()))
    rng = np.random.default_rng(1)
    return module, jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), variables
    )


def test_a_sentence_alone_is_what_it_is_in_a_batch(tiny):
    module, variables = tiny
    tokens, mask = map(jnp.asarray, batch(behind=33))
    apply = partial(jax.jit(partial(module.apply, train=False)), variables)
    found = apply(tokens, mask)
    for row, length in enumerate(LENGTHS):
        alone = apply(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(found.words[row, :length], alone.words[0], atol=1e-6)
        np.testing.assert_allclose(found.pooled[row], alone.pooled[0], atol=1e-6)


def test_a_sentence_longer_than_the_tower_reads_is_refused(tiny):
    module, variables = tiny
    tokens, mask = map(jnp.asarray, batch(13))
    with pytest.raises(ValueError, match="13 tokens; the text tower reads at most 12"):
        module.apply(variables, tokens, mask, train=False)


def test_gradients_are_finite_with_a_sentence_without_words_and_a_black_picture(tiny):
    module, variables = tiny
    tokens, mask = map(jnp.asarray, batch())
    mask = mask.at[1].set(False)

    def total(apply, variables, *inputs):
        local, pooled = apply(variables, *inputs, train=True)
        return (local**2).sum() + (pooled**2).sum()

    image = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    pictures = siglip.make_image(VISION)
    drawn = jax.jit(partial(pictures.init, train=False))(jax.random.key(0), image)
    for gradients in (
        jax.jit(jax.grad(partial(total, module.apply)))(variables, tokens, mask),
        jax.jit(jax.grad(partial(total, pictures.apply)))(drawn, image),
    ):
        leaves = jax.tree.leaves(gradients)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert max(abs(leaf).max() for leaf in leaves) > 0


def test_bfloat16_is_close():
    image = jnp.asarray(noise(32, 32))
    modules = [siglip.make_image(VISION, dtype=d) for d in (jnp.float32, jnp.bfloat16)]
    variables = jax.jit(partial(modules[0].init, train=False))(jax.random.key(0), image)
    full, half = (
        jax.jit(partial(module.apply, train=False))(variables, image) for module in modules
    )
    assert half.grid.dtype == half.pooled.dtype == jnp.bfloat16
    assert 0.99 < np.corrcoef(full.pooled[0], half.pooled[0].astype(jnp.float32))[0, 1] < 1.0


def test_what_is_missing_is_named(tmp_path):
    module = siglip.make_image(VISION)
    init = jax.jit(partial(module.init, train=False))
    drawn = init(jax.random.key(0), jnp.asarray(noise(32, 32)))
    tensors = weights.revert(drawn, siglip.IMAGE_RULES)
    for leaf in ("weight", "bias"):
        parts = [tensors.pop(f"head.attention.{p}.{leaf}") for p in ("query", "key", "value")]
        tensors[f"head.attention.in_proj_{leaf}"] = np.concatenate(parts)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, siglip.load_image(tmp_path, module), drawn)
    del tensors["head.probe"]
    tensors["head.attention.in_proj_bias"] = np.zeros(90, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        siglip.load_image(tmp_path, module)
    assert "head.probe is missing (expected shape (1, 1, 32))" in str(caught.value)
    assert "head.attention.key.bias has shape (30,), expected (32,)" in str(caught.value)


def test_what_the_published_configurations_leave_out():
    base = {"model_type": "siglip", "text_config": {"model_type": "siglip_text_model"}}
    module = siglip.make_text(base)
    assert (module.pad_token_id, module.max_position_embeddings) == (1, 64)
    second = {"text_config": {"model_type": "siglip_text_model", "vocab_size": 256000}}
    assert siglip.make_text(second).pad_token_id == 0
    assert siglip.make_image({"vision_config": {}}).patch_size == 16
    with pytest.raises(WeightsError, match="vision_use_head is false, expected true"):
        siglip.make_image({"vision_config": {"vision_use_head": False}})


@pytest.mark.parametrize(("tower", "parameters"), [("image", 92_884_224), ("text", 110_271_744)])
def test_the_published_model_has_its_size(tower, parameters):
    """siglip-base-patch16-224: 203,155,970 with the logits' scale and bias."""
    if tower == "image":
        module, example = siglip.make_image({}), (jnp.asarray(noise(224, 224)),)
    else:
        module, example = siglip.make_text({}), tuple(map(jnp.asarray, batch()))
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), *example)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
