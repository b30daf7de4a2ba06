"""The one place for everything that learns or adapts."""

from typing import Any

import flax.struct


class TrainState(flax.struct.PyTreeNode):
    """Everything a step reads and writes; a checkpoint holds it whole.

    Attributes:
      step: int32, steps taken.
      params: parameters of the model, {"image": ..., "text": ...}.
      batch_stats: running statistics of batch norms, {} without any.
      opt_state: of the optimizer, over the parameters that are not frozen.
      objective_state: of the objective (margins, centers, counters).
      ema: moving average of the parameters that are not frozen, or None.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    objective_state: Any
    ema: Any
