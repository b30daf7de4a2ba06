"""Visual-semantic embeddings in JAX: photos and sentences in one space.

>>> import vse_jax
>>> model = vse_jax.load("runs/shapes")
>>> scores = model.similarity(
...     model.encode_images(["a.jpg", "b.jpg"]), model.encode_texts(["a red circle"])
... )
"""

from vse_jax.api import Model, load

__all__ = ["Model", "load"]
