"""The loop: set up, restore, step, log, validate, save, evaluate."""

import collections
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vse_jax import (
    evaluation,
    experiment,
    parallel,
    train_step,
    training,
    training_objective,
    validation,
    workdir,
)
from vse_jax.checkpoint import Checkpoints
from vse_jax.console import Progress, TensorBoard
from vse_jax.experiment import Experiment
from vse_jax.losses.codes import refitted
from vse_jax.report import content
from vse_jax.train_state import TrainState

log = logging.getLogger(__name__)
# An event, while it is entered.
Stop = contextlib.AbstractContextManager[threading.Event]
# The collapse: this many log lines in a row within this distance of 2 x margin per pair.
COLLAPSE_LINES, COLLAPSE_DISTANCE = 10, 0.03
# 256 embeddings for each of 256 codes.
REFIT_PAIRS = 32_768
COLLAPSE_ADVICE = (
    "the embeddings have collapsed: the loss has stayed at 2 x margin per pair. Start softer: "
    "raise warmup_epochs of the objective, lower train.learning_rate or raise train.warmup_epochs"
)


def train(
    config: ConfigDict,
    folder: Path,
    listen: Callable[[], Stop] = lambda: contextlib.nullcontext(threading.Event()),
    command: str | None = None,
) -> bool:
    """Trains from where the workdir stands to the end, then evaluates the best checkpoint.

    Args:
      config: of the run.
      folder: the workdir.
      listen: entered for the steps alone (what is killed before or behind loses nothing); when the
        event is set, the run saves and returns at the next step.
      command: that does this again, for the report.

    Returns:
      Whether the run came to its end.

    Raises:
      train_step.NonFiniteLoss: the last good checkpoint is kept.
      ConfigError, WorkdirError, DataError, WeightsError, CheckpointError: see their modules.
    """
    with workdir.locked(folder, parallel.is_first_process()):
        return _train(config, folder, listen, command)


def _train(
    config: ConfigDict, folder: Path, listen: Callable[[], Stop], command: str | None
) -> bool:
    run = experiment.prepare(config, folder, training=True)
    last = Checkpoints(folder / "checkpoints" / "last", keep=2)
    best = Checkpoints(folder / "checkpoints" / "best", keep=2)
    template = initial_state(run)
    state = last.restore(template)
    if state is None:
        state = template
    else:
        log.info("resumed at step %d", int(state.step))
    told = never_mined(run)
    for warning in told:
        log.warning(warning)
    with listen() as stop:
        loop = Loop(run, state, last, best, stop)
        try:
            finished = loop.run()
        finally:
            loop.close()
    if finished:
        warnings = [*told, *warnings_of(loop.metrics.rows)]
        content.report_state(run, _final_state(run, template), warnings, command)
    return finished


def _final_state(run: Experiment, template: TrainState) -> TrainState:
    """The best checkpoint of a finished training, its codes refitted once and for all.

    That state is saved beside it, under the number after the last step.
    """
    best = Checkpoints(run.workdir / "checkpoints" / "best", keep=2)
    try:
        state = evaluation.restored(best, template)
        number = total_steps(run) + 1
        if best.newest() == number:
            return state
        final = with_refitted_codes(run, state)
        if final is not state:
            best.save(number, final)
            best.wait()
        return final
    finally:
        best.close()


def initial_state(run: Experiment) -> TrainState:
    """The state before the first step, as host arrays."""
    state = _training(run).initial_state(run.built.variables)
    return jax.tree.map(np.asarray, state)


def _training(run: Experiment) -> training.Training:
    return training.build(
        run.config,
        run.built.model,
        run.built.variables["params"],
        images=len(run.dataset.splits["train"].images),
        steps=total_steps(run),
        steps_per_epoch=steps_per_epoch(run),
    )


def steps_per_epoch(run: Experiment) -> float:
    """Examples of an epoch over those of a batch; batches may straddle epochs."""
    split = run.dataset.splits["train"]
    return split.epoch_size(run.config.data.epoch) / run.config.train.batch_size


def total_steps(run: Experiment) -> int:
    """Steps of the whole training."""
    if run.config.train.steps is not None:
        return run.config.train.steps
    return math.ceil(run.config.train.epochs * steps_per_epoch(run))


def with_refitted_codes(run: Experiment, state: TrainState) -> TrainState:
    """The state (host arrays) with its codebook, if any, fitted to training pairs as searched.

    In training the codebook follows embeddings with dropout and by parameters that are not
    averaged, and has just begun anew where `rotate_at` says so. What batch statistics are for
    averaged parameters (Izmailov et al., Averaging Weights, UAI 2018, section 3.1), codes are here.
    """
    rounds = run.config.train.refit_codes
    codebook = training_objective.codebook_of(state.objective_state)
    if codebook is None or not rounds:
        return state
    begun = time.perf_counter()
    pairs = evaluation.encode_pairs(run, state, REFIT_PAIRS)
    codebook = refitted(codebook, np.concatenate([pairs.images, pairs.captions]), rounds)
    log.info(
        "codes fitted to %d training pairs in %.0f s",
        len(pairs.captions), time.perf_counter() - begun,
    )  # fmt: skip
    kept = training_objective.with_codebook(state.objective_state, codebook)
    return state.replace(objective_state=kept)


def warnings_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the log of a training warns of: the collapse."""
    run_length = 0
    for row in rows:
        collapse = [value for name, value in row.items() if name.endswith("/collapse")]
        if not collapse:
            continue
        near = any(abs(value - 1.0) < COLLAPSE_DISTANCE for value in collapse)
        run_length = run_length + 1 if near else 0
        if run_length == COLLAPSE_LINES:
            return [f"step {row['step']}: {COLLAPSE_ADVICE}"]
    return []


def never_mined(run: Experiment) -> list[str]:
    """What is wrong with a training that ends before its hardest negatives are mined."""
    epochs = total_steps(run) / steps_per_epoch(run)
    return [
        f"the training of {epochs:.3g} epochs ends before 'objective.{name}.warmup_epochs' = "
        f"{section.warmup_epochs:g}: the hardest negatives are never mined"
        for name, section in (
            ("triplet", run.config.objective.triplet), ("leap", run.config.objective.leap)
        )
        if section.weight and section.negatives == "hardest" and epochs <= section.warmup_epochs
    ]  # fmt: skip


class Loop:
    """Steps a state to its end; every side effect of training happens here."""

    def __init__(
        self,
        run: Experiment,
        state: TrainState,
        last: Checkpoints,
        best: Checkpoints,
        stop: threading.Event,
    ) -> None:
        """Starts at the step of `state` (host arrays)."""
        self.experiment, self.last, self.best, self.stop = run, last, best, stop
        self.start, self.end = int(state.step), total_steps(run)
        self.epoch_steps = steps_per_epoch(run)
        built = _training(run)
        self.rate = built.rate
        self.step = built.on(run.devices, state)
        self.state = run.devices.place(state)
        writes = parallel.is_first_process()
        self.metrics = workdir.MetricsLog(run.workdir, self.start, writes)
        self.board = TensorBoard(run.workdir) if writes else None
        self.waited = 0.0
        self.pending: collections.deque[tuple[int, np.ndarray, Any]] = collections.deque()
        self.warned = bool(warnings_of(self.metrics.rows))

    def run(self) -> bool:
        """Steps to the end; False if stopped before."""
        if self.start >= self.end:
            return True
        log.info("compiling the step: up to a minute or two where it was not compiled before")
        batches = self.experiment.devices.prefetch(self._timed(self._batches()))
        with Progress(self.start, self.end) as progress:
            mark, mark_step = time.perf_counter(), self.start
            for number, (host, batch) in enumerate(batches, self.start + 1):
                with parallel.without_transfers():
                    self.state, metrics = self.step(self.state, batch)
                self.pending.append((number, host["image_id"], metrics))
                self._check(keep=1)
                if number % self.experiment.config.train.log_every == 0 or number == self.end:
                    found = self._check(keep=0)  # so that the last step's time counts
                    self._log(number, found, time.perf_counter() - mark, number - mark_step)
                    mark, mark_step = time.perf_counter(), number
                    self.waited = 0.0
                elif number == self.start + 1:
                    # The rate is without the time of compiling.
                    mark, mark_step, self.waited = time.perf_counter(), number, 0.0
                progress.advance(number)
                if self._ends_interval(number):
                    self._validate(number)
                    mark, mark_step = time.perf_counter(), number
                    self.waited = 0.0
                elif number % self.experiment.config.train.checkpoint_every == 0:
                    self._save(number)
                if number < self.end and parallel.agreed_interruption(number, self.stop.is_set()):
                    self._save(number)
                    log.warning("stopped at step %d; the same command goes on from here", number)
                    return False
        return True

    def close(self) -> None:
        """Waits for what is being written."""
        self.last.close()
        self.best.close()
        self.metrics.close()
        if self.board is not None:
            self.board.close()

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        from vse_jax.data import pipeline  # here: it imports TensorFlow

        config = self.experiment.config
        return pipeline.train_batches(
            self.experiment.examples["train"],
            seed=config.seed,
            batch_size=config.train.batch_size,
            start=self.start,
            steps=self.end,
            epoch=config.data.epoch,
            shuffle_captions=config.data.shuffle_captions,
            **parallel.process_share(),
        )

    def _timed(self, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """The batches, counting the seconds spent waiting for them."""
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - begun
            if batch is None:
                return
            yield batch

    def _ends_interval(self, number: int) -> bool:
        """Whether an interval of `train.validate_every` epochs ends with this step."""
        every = self.experiment.config.train.validate_every * self.epoch_steps
        return number == self.end or math.floor(number / every) > math.floor((number - 1) / every)

    def _check(self, keep: int) -> Any:
        """Looks at finished steps, all but the newest `keep`; returns the metrics of the last.

        A step is looked at while the next one runs, so that the devices never wait for it.
        """
        found = None
        while len(self.pending) > keep:
            number, image_ids, metrics = self.pending.popleft()
            found = self.experiment.devices.fetch(metrics)
            if not all(np.isfinite(found[name]) for name in ("loss", "gradient_norm")):
                names = self.experiment.dataset.splits["train"].images
                raise train_step.NonFiniteLoss(
                    f"step {number}: loss {found['loss']}, gradient norm {found['gradient_norm']}; "
                    f"nothing of it was saved. Pictures of the batch, as id=name: "
                    + ", ".join(f"{i}={names[i]}" for i in image_ids)
                )
        return found

    def _log(self, number: int, found: Any, seconds: float, steps: int) -> None:
        rate = steps * self.experiment.config.train.batch_size / seconds
        waiting = self.waited / seconds
        row = {"step": number, "epoch": number / self.epoch_steps}
        row |= {name: float(value) for name, value in found.items()}
        row["learning_rate"] = float(self.rate(number - 1))
        self._record(row | {"time/images_per_second": rate, "time/waiting_for_data": waiting})
        left = (self.end - number) * seconds / steps
        log.info(
            "step %d/%d  loss %.4f  %.0f images/s  waiting for data %.0f%%  ETA %s",
            number, self.end, row["loss"], rate, 100 * waiting, _duration(left),
        )  # fmt: skip
        if not self.warned and (warnings := warnings_of(self.metrics.rows)):
            log.warning(warnings[0])
            self.warned = True

    def _record(self, row: Mapping[str, float | int]) -> None:
        self.metrics.add(row)
        if self.board is not None:
            self.board.write(row)

    def _validate(self, number: int) -> None:
        self._check(keep=0)
        state = self.experiment.devices.fetch(self.state)
        found = validation.validate(self.experiment, state)
        better = found.is_better_than(self.metrics.values(f"validation/{found.measure}"))
        self._record(
            {"step": number, "epoch": number / self.epoch_steps}
            | {f"validation/{name}": value for name, value in found.metrics.items()}
        )
        log.info("epoch %.1f  validation %s", number / self.epoch_steps, found.summary)
        self.metrics.sync()
        if better:
            self.best.save(number, state)
            # Before the last one: a run killed between the two goes on from there, and would
            # take the best for saved.
            self.best.wait()
        self.last.save(number, state)

    def _save(self, number: int) -> None:
        self._check(keep=0)
        self.metrics.sync()
        self.last.save(number, self.experiment.devices.fetch(self.state))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
