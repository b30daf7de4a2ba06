"""The command line of a script that takes a config and writes something of its data set."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vse_jax import config as configs
from vse_jax import console
from vse_jax.errors import USER_ERRORS


def run(
    name: str,
    usage: str | None,
    arguments: Sequence[str],
    work: Callable[[ConfigDict, Path], None],
    *,
    own: flags.FlagValues | None = None,
    suffix: str = "",
) -> None:
    """Calls `work` with --config and --output; a user's mistake ends in one clear line.

    Args:
      name: of the script.
      usage: told where --config or --output is missing.
      arguments: of the command line, without the program's name.
      work: what the script does.
      own: the script's other flags.
      suffix: what --output must end in.
    """
    # Own flags, so that whoever imports the script keeps theirs; ml_collections looks at sys.argv.
    own = flags.FlagValues() if own is None else own
    chosen = config_flags.DEFINE_config_file("config", None, "A file of configs/.", flag_values=own)
    output = flags.DEFINE_string("output", None, "What to write.", flag_values=own)
    console.set_up_logging()
    try:
        configs.names_set(arguments)  # the unknown ones are told
        if {"-h", "--help"} & set(arguments):
            print(usage)
            return
        rest = own([name, *arguments])[1:]
        no_output = output.value is None or not output.value.endswith(suffix)
        if rest or chosen.value is None or no_output:
            needed = f"--output=FILE{suffix}" if suffix else "--output"
            unknown = f", and knows no {' '.join(rest)}" if rest else ""
            sys.exit(f"{usage}\n{name}: needs --config and {needed}{unknown}")
        configs.unset(chosen.value)
        work(chosen.value, Path(output.value).expanduser())
    except (*USER_ERRORS, OSError, flags.Error) as error:
        sys.exit(f"{name}: {error}")
