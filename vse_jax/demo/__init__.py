"""A page to try trained models on: what its tabs do (`tabs`), and the page around it (`page`)."""
