from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy

from vse_jax.models.backbones import catalogue, clip, text_catalogue, weights
from vse_jax.models.backbones.weights import WeightsError

BLOCKS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
CLOSING = 49
TEXT = BLOCKS | {
    "vocab_size": 50,
    "max_position_embeddings": 12,
    "bos_token_id": 0,
    "eos_token_id": CLOSING,
    "pad_token_id": CLOSING,
}
VISION = BLOCKS | {"hidden_size": 24, "image_size": 32, "patch_size": 8}


def noise(height, width, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def batch(lengths=(9, 4, 2)):
    """Sentences that end with the closing token, which stands behind them too."""
    rng = np.random.default_rng(0)
    tokens = np.full((len(lengths), max(lengths)), CLOSING, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, length in enumerate(lengths):
        tokens[row, : length - 1] = rng.integers(1, CLOSING, length - 1)
        mask[row, :length] = True
    return tokens, mask


def module_of(folder, towers, dtype=jnp.float32):
    """The tower that the catalogue makes of the folder, and its function."""
    extra = (dtype, "data") if towers is catalogue else (dtype,)
    module = towers.clip.make(weights.load_config(folder), *extra)
    variables = towers.clip.load(str(folder), module)
    return partial(jax.jit(partial(module.apply, train=False)), variables)


def pixels(image):
    mean = np.float32([0.48145466, 0.4578275, 0.40821073])
    std = np.float32([0.26862954, 0.26130258, 0.27577711])
    scaled = (image.astype(np.float32) / 255 - mean) / std
    return parity.torch().from_numpy(scaled).permute(0, 3, 1, 2)


def compare_images(model, image, found):
    with parity.torch().no_grad():
        out = model.vision_model(pixels(image), interpolate_pos_encoding=True)
        tokens = model.vision_model.post_layernorm(out.last_hidden_state)[:, 1:].numpy()
        pooled = model.visual_projection(out.pooler_output).numpy()
    cells = (image.shape[1] // 8, image.shape[2] // 8)
    assert pooled.std() > 0.1
    grid = tokens.reshape(len(image), *cells, -1)
    np.testing.assert_allclose(found.grid, grid, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-4, rtol=1e-4)


def compare_texts(model, tokens, mask, found):
    torch = parity.torch()
    with torch.no_grad():
        ids, seen = torch.from_numpy(tokens).long(), torch.from_numpy(mask)
        out = model.text_model(ids, attention_mask=seen)
        pooled = model.text_projection(out.pooler_output).numpy()
        words = out.last_hidden_state.numpy()
    assert pooled.std() > 0.1
    np.testing.assert_allclose(np.asarray(found.words)[mask], words[mask], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-4, rtol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("config", "height", "width"), [({}, 32, 32), ({"hidden_act": "gelu"}, 40, 56)]
)
def test_both_towers_of_one_folder_are_those_of_transformers(tmp_path, config, height, width):
    library = parity.transformers()
    model = library.CLIPModel(
        library.CLIPConfig(
            text_config=TEXT | config, vision_config=VISION | config, projection_dim=20
        )
    )
    parity.saved(parity.randomize(model), tmp_path)
    image, (tokens, mask) = noise(height, width), batch()
    compare_images(model, image, module_of(tmp_path, catalogue)(jnp.asarray(image)))
    texts = module_of(tmp_path, text_catalogue)
    compare_texts(model, tokens, mask, texts(jnp.asarray(tokens), jnp.asarray(mask)))


@pytest.mark.torch
def test_the_embedding_is_that_of_published_configurations_too(tmp_path):
    """OpenAI's say that sentences close with token 2, and mean the largest; they hold buffers."""
    library = parity.transformers()
    config = library.CLIPConfig(text_config=TEXT | {"eos_token_id": 2}, vision_config=VISION)
    model = parity.randomize(library.CLIPModel(config))
    file = parity.saved(model, tmp_path) / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["text_model.embeddings.position_ids"] = np.arange(12)[None]
    tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    safetensors.numpy.save_file(tensors, file)
    image, (tokens, mask) = noise(32, 32), batch()
    compare_images(model, image, module_of(tmp_path, catalogue)(jnp.asarray(image)))
    texts = module_of(tmp_path, text_catalogue)
    compare_texts(model, tokens, mask, texts(jnp.asarray(tokens), jnp.asarray(mask)))


@pytest.mark.torch
def test_towers_saved_alone_load(tmp_path):
    library = parity.transformers()
    config = library.CLIPTextConfig(**TEXT, projection_dim=20)
    model = parity.randomize(library.CLIPTextModelWithProjection(config))
    parity.saved(model, tmp_path / "text")
    tokens, mask = batch()
    texts = module_of(tmp_path / "text", text_catalogue)
    compare_texts(model, tokens, mask, texts(jnp.asarray(tokens), jnp.asarray(mask)))
    config = library.CLIPVisionConfig(**VISION, projection_dim=20)
    model = parity.randomize(library.CLIPVisionModelWithProjection(config))
    parity.saved(model, tmp_path / "vision")
    image = noise(32, 32)
    found = module_of(tmp_path / "vision", catalogue)(jnp.asarray(image))
    compare_images(model, image, found)
    with pytest.raises(WeightsError, match="model_type is 'clip_vision_model', expected 'clip' or"):
        module_of(tmp_path / "vision", text_catalogue)


@pytest.fixture
def tiny():
    module = clip.make_text({"text_config": TEXT, "projection_dim": 20})
    init = jax.jit(partial(module.init, train=False))
    variables = init(jax.random.key(0), *map(jnp.asarray, batch()))
    rng = np.random.default_rng(1)
    return module, jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), variables
    )


def test_a_sentence_alone_is_what_it_is_in_a_batch(tiny):
    module, variables = tiny
    tokens, mask = map(jnp.asarray, batch())
    tokens = jnp.where(mask, tokens, 7)
    apply = partial(jax.jit(partial(module.apply, train=False)), variables)
    found = apply(tokens, mask)
    for row, length in enumerate((9, 4, 2)):
        alone = apply(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(found.words[row, :length], alone.words[0], atol=1e-6)
        np.testing.assert_allclose(found.pooled[row], alone.pooled[0], atol=1e-6)


def test_gradients_are_finite_with_a_sentence_without_words_and_a_black_picture(tiny):
    module, variables = tiny
    tokens, mask = (jnp.asarray(x) for x in batch((3, 2)))
    mask = mask.at[1].set(False)

    def total(apply, variables, *inputs):
        local, pooled = apply(variables, *inputs, train=True)
        return (local**2).sum() + (pooled**2).sum()

    image = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    pictures = clip.make_image(VISION)
    drawn = jax.jit(partial(pictures.init, train=False))(jax.random.key(0), image)
    for gradients in (
        jax.jit(jax.grad(partial(total, module.apply)))(variables, tokens, mask),
        jax.jit(jax.grad(partial(total, pictures.apply)))(drawn, image),
    ):
        leaves = jax.tree.leaves(gradients)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert max(abs(leaf).max() for leaf in leaves) > 0


def test_bfloat16_is_close(tiny):
    module, variables = tiny
    arrays = tuple(map(jnp.asarray, batch()))
    half = clip.make_text({"text_config": TEXT, "projection_dim": 20}, dtype=jnp.bfloat16)
    full, found = (net.apply(variables, *arrays, train=False).pooled for net in (module, half))
    assert found.dtype == jnp.bfloat16
    assert 0.99 < np.corrcoef(full[0], found[0].astype(jnp.float32))[0, 1] < 1.0


def test_dropout_is_the_configurations():
    settings = {"text_config": TEXT | {"attention_dropout": 0.5}}
    module = clip.make_text(settings)
    arrays = tuple(map(jnp.asarray, batch()))
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), *arrays)
    rngs = {"dropout": jax.random.key(1)}
    still = module.apply(variables, *arrays, train=False).words
    dropped = module.apply(variables, *arrays, train=True, rngs=rngs).words
    assert not np.allclose(still, dropped, atol=1e-3)


def test_what_is_missing_is_named_and_the_other_tower_is_not(tmp_path, tiny):
    module, variables = tiny
    tensors = {
        name if name.startswith("text_projection") else f"text_model.{name}": tensor
        for name, tensor in weights.revert(variables, clip.TEXT_RULES).items()
    }
    del tensors["text_model.encoder.layers.1.self_attn.q_proj.weight"]
    tensors["text_projection.weight"] = np.zeros((21, 32), np.float32)
    tensors["text_model.extra"] = np.zeros(3, np.float32)
    tensors["vision_model.embeddings.class_embedding"] = np.zeros(3, np.float32)
    tensors["visual_projection.weight"] = tensors["logit_scale"] = np.zeros(1, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        clip.load_text(tmp_path, module)
    message = str(caught.value)
    assert "text_model.encoder.layers.1.self_attn.q_proj.weight is missing" in message
    assert "text_projection.weight has shape (21, 32), expected (20, 32)" in message
    assert "text_model.extra of shape (3,) has no place" in message
    assert "vision" not in message
    assert "visual" not in message
    assert "logit" not in message


@pytest.mark.parametrize(("tower", "parameters"), [("image", 87_849_216), ("text", 63_428_096)])
def test_the_published_model_has_its_size(tower, parameters):
    """clip-vit-base-patch32: 151,277,313 with the logits' scale."""
    if tower == "image":
        module, example = clip.make_image({}), (jnp.asarray(noise(224, 224)),)
    else:
        module, example = clip.make_text({}), tuple(map(jnp.asarray, batch()))
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), *example)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
