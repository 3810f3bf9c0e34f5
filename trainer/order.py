"""Which examples a run sees, and in which order: one endless stream, cut into optimizer steps."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


class Order:
    """The stream of a data set's examples, each epoch in its own order.

    The order is a function of the seed, the epoch and the examples' lengths alone: a run can go on anywhere, and
    batches of any size walk through the same stream.

    With a ``window``, each window of so many examples of an epoch is sorted by length, by turns upwards and downwards,
    so that neighbours are alike, at the windows' borders too. Every epoch still shows every example once, and which
    examples share a window is as random as before. But the steps within a window come in order of length, and as a
    step's loss is a mean over its tokens, a token of a short example weighs more than it would in a mixed batch.
    """

    def __init__(self, lengths: Sequence[int], *, seed: int, window: int | None = None) -> None:
        self._lengths = np.asarray(lengths)
        self._seed = seed
        self._window = window
        self._epoch = -1
        self._arranged: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def take(self, start: int, stop: int) -> list[int]:
        """Return the indices of the stream's ``start``-th example to that before its ``stop``-th."""
        indices: list[int] = []
        while start < stop:
            epoch, offset = divmod(start, len(self._lengths))
            if epoch != self._epoch:
                self._epoch, self._arranged = epoch, self._arrange(epoch)
            part = self._arranged[offset : offset + stop - start]
            indices.extend(part.tolist())
            start += len(part)
        return indices

    def steps(self, start: int, stop: int, batch_size: int) -> Iterator[list[int]]:
        """Yield one step's indices after another, from ``start`` examples seen to exactly ``stop``."""
        for first in range(start, stop, batch_size):
            yield self.take(first, min(first + batch_size, stop))

    def _arrange(self, epoch: int) -> NDArray[np.int64]:
        shuffled = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
        if self._window is None:
            return shuffled
        parts = []
        for number, first in enumerate(range(0, len(shuffled), self._window)):
            part = shuffled[first : first + self._window]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            parts.append(part if number % 2 == 0 else part[::-1])
        return np.concatenate(parts)
