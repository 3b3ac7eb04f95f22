"""How fast a training reads its tokens."""

import contextlib
import time
from collections.abc import Iterator


class TokenClock:
    """Counts tokens, and the time that is spent on them, from one reading to the next."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0.0, 0.0
        self._started: float | None = None

    def add(self, num_tokens: float) -> None:
        """
        Counts tokens of a step that begins now. The first one starts the clock.

        Args:
            num_tokens (`float`): of the step, over all processes.
        """
        self._tokens += num_tokens
        if self._started is None:
            self._started = time.perf_counter()

    def read(self) -> float | None:
        """Tokens per second since the last reading; `None` if the clock has not run."""
        self._stop()
        rate = self._tokens / self._seconds if self._seconds else None
        self._tokens, self._seconds = 0.0, 0.0
        self._started = time.perf_counter()
        return rate

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done within takes no time."""
        was_running = self._started is not None
        self._stop()
        try:
            yield
        finally:
            if was_running:
                self._started = time.perf_counter()

    def _stop(self) -> None:
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
        self._started = None


__all__ = ["TokenClock"]
