"""How far a long piece of work is, told twice a minute."""

import logging
import time

# Seconds between two lines.
EVERY = 30


class Pace:
    """Tells a log how much is done."""

    def __init__(self, log: logging.Logger, total: int, what: str) -> None:
        """Starts the clock; `total` of `what` are to be done."""
        self._log, self._total, self._what = log, total, what
        self._done = self._before = 0
        self._begun = self._told = time.perf_counter()

    def skip(self, count: int) -> None:
        """So many were done before."""
        self._before += count

    def advance(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = time.perf_counter()
        if now - self._told <= EVERY:
            return
        self._told = now
        # Behind the last, batches have rows of padding.
        done = min(self._before + self._done, self._total)
        rate = self._done / (now - self._begun)
        self._log.info("%d of %d %s, %.0f a second", done, self._total, self._what, rate)
