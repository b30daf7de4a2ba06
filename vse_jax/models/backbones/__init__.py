"""Image backbones, and the loading of their public weights."""
