"""Measures workdirs: one again, a config before any training, several as one."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from vse_jax import assembly, checkpoint, evaluation, experiment, parallel, train, workdir
from vse_jax.checkpoint import CheckpointError, Checkpoints
from vse_jax.data.split import DataError, Split
from vse_jax.evaluation import Embeddings
from vse_jax.experiment import Experiment
from vse_jax.report import content
from vse_jax.train_state import TrainState
from vse_jax.workdir import WorkdirError

log = logging.getLogger(__name__)


def again(folder: Path) -> dict[str, float]:
    """Measures the best checkpoint of a workdir again and rewrites its reports.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    run = experiment.prepare(workdir.read_config(folder), folder)
    state = evaluation.best_state(run, train.initial_state(run))
    return _reported(run, state, content.reported_command(folder))


def untrained(config: ConfigDict, folder: Path, command: str | None = None) -> dict[str, float]:
    """Measures what a config is before any training, and keeps it in the workdir.

    It becomes checkpoint 0, the best one until training finds a better. A workdir that was trained
    is measured as it is.

    Args:
      config: of the run.
      folder: the workdir.
      command: that does this again, for the report.

    Raises:
      CheckpointError: training has begun, and has no best checkpoint yet.
      ConfigError, WorkdirError, DataError, WeightsError: see their modules.
    """
    with workdir.locked(folder, parallel.is_first_process()):
        run = experiment.prepare(config, folder)
        start = train.initial_state(run)
        best = Checkpoints(folder / "checkpoints" / "best", keep=2)
        try:
            state = best.restore(start)
            if state is None:
                if workdir.read_metrics(folder):
                    raise CheckpointError(f"{best.folder} has no checkpoint yet: train it first")
                state = start
                best.save(0, state)
        finally:
            best.close()
        return _reported(run, state, command)


def together(folders: Sequence[Path], output: Path, command: str | None = None) -> dict[str, float]:
    """Measures the mean of the similarity matrices of several workdirs, such as SGRAF's two.

    Args:
      folders: trained on one data set, by any networks and objectives.
      output: where the reports go.
      command: that does this again, for the report.

    Raises:
      DataError: the workdirs are of different test pictures or captions.
      CheckpointError: one of them has no checkpoint.
      WorkdirError: `output` is a workdir itself, one of the others none, or one is named twice.
    """
    if (output / workdir.CONFIG).exists():
        raise WorkdirError(f"{output} is a workdir: name another --output, or its report is lost")
    # What can be told at once is told before minutes of scoring.
    for number, folder in enumerate(folders):
        if not assembly.compares(workdir.read_config(folder)):
            raise WorkdirError(
                f"{folder} has a model that writes captions or tells classes; only models that "
                "compare pictures and sentences are measured together"
            )
        best = folder / "checkpoints" / "best"
        if not checkpoint.any_in(best):
            raise CheckpointError(f"{best} has no checkpoint yet: train it first")
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise WorkdirError(f"{folder} is named twice: it would count twice in the mean")
    first: Experiment | None = None
    known: Split | None = None
    total: np.ndarray | None = None
    for folder in folders:
        run = experiment.prepare(workdir.read_config(folder), folder)
        name = evaluation.reported_split(run.dataset)
        split = run.dataset.splits[name]
        first, known = first or run, known or split
        paired = ("images", "captions", "caption_image")
        if any(list(getattr(split, part)) != list(getattr(known, part)) for part in paired):
            raise DataError(
                f"{folder} is measured on other pictures or captions than {folders[0]}: an "
                "ensemble needs workdirs of one data set and split"
            )
        state = evaluation.best_state(run, train.initial_state(run))
        embeddings = evaluation.encode(run, state, name)
        log.info("%s %s", folder, evaluation.summary(evaluation.measure(split, embeddings)))
        scores = embeddings.scores()
        total = scores if total is None else total + scores
    assert first is not None
    assert total is not None
    mean = Embeddings.of_scores(total / len(folders))
    output.mkdir(parents=True, exist_ok=True)
    facts = {"ensemble": [str(folder) for folder in folders], "command": command}
    return content.write_reports(output, first, mean, facts)


def _reported(run: Experiment, state: TrainState, command: str | None) -> dict[str, float]:
    told = train.never_mined(run) if int(state.step) else _never_trained(run)
    warnings = [*told, *train.warnings_of(workdir.read_metrics(run.workdir))]
    return content.report_state(run, state, warnings, command)


def _never_trained(run: Experiment) -> list[str]:
    """What the figures of a state before training say little for: parameters drawn at random."""
    drawn = run.built.drawn
    if not drawn:
        return []
    warning = (
        f"nothing is trained yet, and {len(drawn)} parameters are as drawn at random, such as "
        f"{drawn[0]!r}: the figures say nothing of the model"
    )
    log.warning(warning)
    return [warning]
