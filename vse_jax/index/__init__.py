"""Search in many embeddings."""
