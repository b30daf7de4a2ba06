"""Data sets, readers of users' own files, tokenizers, caches and the input pipeline."""

import os

# TensorFlow reads these when first imported: errors only, and no note about oneDNN's rounding.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
