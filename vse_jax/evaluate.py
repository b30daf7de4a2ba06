"""python -m vse_jax.evaluate --workdir=...: measures a workdir again, rewrites its reports.

The same as `python -m vse_jax.main --mode=evaluate --workdir=...`. With --config it measures a
config that was never trained, such as `configs/flickr8k.py:clip`; with several --workdir and an
--output the mean of their similarities.
"""

import sys

from vse_jax import main

if __name__ == "__main__":
    main.start([sys.argv[0], "--mode=evaluate", *sys.argv[1:]])
