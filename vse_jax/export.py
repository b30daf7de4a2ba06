"""python -m vse_jax.export --workdir=RUN --format=FORMAT: a trained model for other programs.

    orbax        parameters and batch statistics alone, for other JAX code
    safetensors  a folder that vse_jax.load takes; --push=OWNER/NAME uploads it to the hub
    jax_export   towers and caption step as StableHLO for CPU, CUDA and TPU, for JAX alone
    onnx         the same as ONNX, for any runtime of it

The folder (--output, or RUN/export/FORMAT) also has export.json, which says how inputs are made and
what results mean, and, with functions, use.py, a program that needs nothing of vse_jax. It is there
whole or not at all; an earlier export is replaced. --model is in the place of a workdir: weights of
CLIP or SigLIP, a folder or a name on the Hugging Face hub.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vse_jax import config as configs
from vse_jax import console, hub, parallel, trained, workdir
from vse_jax.errors import USER_ERRORS
from vse_jax.exporting import description, folder, formats, functions, parameters, use
from vse_jax.trained import Trained

log = logging.getLogger("vse_jax.export")
FORMATS = ("orbax", "safetensors", "jax_export", "onnx")


def main(arguments: Sequence[str]) -> None:
    """Exports what the command line asks for; a user's mistake ends in one clear line."""
    given = _parsed(arguments)
    console.set_up_logging()
    parallel.keep_compiled()
    try:
        output = given.output or given.workdir / "export" / given.format
        output = output.expanduser()
        export(given.workdir or given.model, given.format, output, given.regions)
        print(f"{folder.size(output) / 1e6:.1f} MB in {output}")
        if given.push is not None:
            print(hub.push(output, given.push))
    except (*USER_ERRORS, ValueError, OSError) as error:
        sys.exit(f"export: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("export: stopped; nothing was written\n")
        sys.exit(130)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = console.Parser(
        "python -m vse_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_model()
    parser.add_argument("--format", choices=FORMATS, required=True, help="what it becomes")
    parser.add_argument("--output", type=Path, help="folder to write (RUN/export/FORMAT)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the hub (safetensors)")
    parser.add_argument("--regions", type=int, help="of every picture; any number unless given")
    given = parser.parse_args(arguments)
    if given.regions is not None and given.regions < 1:
        parser.error(f"--regions={given.regions} is no number of 1 or more")
    if given.workdir is None and given.output is None:
        parser.error("--model has no folder of its own: give --output=FOLDER")
    if given.push is not None and given.format != "safetensors":
        parser.error("--push uploads what vse_jax.load takes: give --format=safetensors")
    if given.push is not None and not hub.is_name(given.push):
        parser.error(f"--push={given.push} is no repository of the hub; expected OWNER/NAME")
    return given


def export(source: str | Path, format_: str, output: Path, regions: int | None = None) -> None:
    """Writes the model of a workdir as a folder of one of the FORMATS.

    Args:
      source: what `vse_jax.load` takes.
      format_: one of the FORMATS.
      output: the folder.
      regions: as of `functions.functions`.

    Raises:
      WorkdirError, CheckpointError: there is no such model.
      ExportError: it cannot become that, or not there.
    """
    folder.check(output)
    if format_ == "onnx":
        formats.check_onnx()
    found = trained.read(source)
    about = description.about(found, format_)
    if format_ in ("orbax", "safetensors"):
        write = parameters.write_orbax if format_ == "orbax" else parameters.write_safetensors
        with folder.whole(output, about) as partial:
            write(found, partial)
        return
    _functions(found, about, format_, output, regions)


def _functions(
    found: Trained, about: dict[str, object], format_: str, output: Path, regions: int | None
) -> None:
    """The functions of a model, each a file, and what goes with them."""
    suffix, write = (".jax_export", formats.write_jax)
    if format_ == "onnx":
        found, suffix, write = for_onnx(found), ".onnx", formats.write_onnx
        about["precision"] = "float32"
    own = functions.functions(found, regions)
    about["functions"] = description.of_functions(own, suffix)
    with folder.whole(output, about) as partial:
        for function in own:
            log.info("exporting %s", function.name)
            write(function, partial / f"{function.name}{suffix}", found.config.precision)
        (partial / workdir.TOKENIZER).write_text(found.vocabulary, encoding="utf-8")
        (partial / workdir.CONFIG).write_text(configs.to_json(parameters.published(found)))
        shutil.copyfile(use.__file__, partial / "use.py")


def for_onnx(found: Trained) -> Trained:
    """The same model, computed in float32, its convolutions of single channels left to the runtime.

    Runtimes on CPUs have little for bfloat16, and a loop of their own for these convolutions.
    """
    config = found.config.copy_and_resolve_references()
    if config.precision != "float32":
        log.info("computed in float32, where training was in %s", config.precision)
    config.precision = "float32"
    model = trained.model_of(config, found.origin)
    backbone = model.image.backbone
    if hasattr(backbone, "grouped"):
        image = model.image.clone(backbone=backbone.clone(grouped=True))
        model = model.clone(image=image)
    return found._replace(config=config, model=model)


if __name__ == "__main__":
    main(sys.argv[1:])
