"""The only room that names devices, the mesh, the axis, processes and collectives.

A step is written for one device, with collectives over the axis "data" (`collectives`).
`Devices.map` runs it on every device, through `jax.shard_map` or `jax.pmap` (`devices`). Both
leave `pmean(grad(local_loss))` right (see `map`), so one step serves both. Several processes are
joined first (`processes`).
"""

from vse_jax.parallel.collectives import (
    AXIS,
    SplitRows,
    all_gather,
    around,
    device_count,
    device_index,
    from_shares,
    mean,
    own_share,
    put_rows,
    take_rows,
    total,
    transposed,
)
from vse_jax.parallel.devices import (
    REPLICATED,
    SPLIT,
    Devices,
    Placement,
    exact_products,
    is_split,
    keep_compiled,
    placements,
    without_transfers,
)
from vse_jax.parallel.processes import (
    AUTO,
    ProcessesError,
    agreed_interruption,
    all_agree,
    as_the_first,
    barrier,
    first_process_first,
    initialize,
    is_first_process,
    leave,
    loss_behind,
    misfit,
    process_share,
)

__all__ = [
    "AUTO",
    "AXIS",
    "REPLICATED",
    "SPLIT",
    "Devices",
    "Placement",
    "ProcessesError",
    "SplitRows",
    "agreed_interruption",
    "all_agree",
    "all_gather",
    "around",
    "as_the_first",
    "barrier",
    "device_count",
    "device_index",
    "exact_products",
    "first_process_first",
    "from_shares",
    "initialize",
    "is_first_process",
    "is_split",
    "keep_compiled",
    "leave",
    "loss_behind",
    "mean",
    "misfit",
    "own_share",
    "placements",
    "process_share",
    "put_rows",
    "take_rows",
    "total",
    "transposed",
    "without_transfers",
]
