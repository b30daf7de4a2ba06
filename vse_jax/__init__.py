"""Visual-semantic embeddings in JAX: photos and sentences in one space."""
