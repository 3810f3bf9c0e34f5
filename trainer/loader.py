"""Examples read ahead of the training step, by processes of their own where decoding takes long."""

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.batches import AudioDataset, Example
from trainer.errors import BadInputError

PRELOADED = ["trainer.session"]
"""What the fork server imports, once: all that the main module of a training process would import in every fork."""


def load(dataset: AudioDataset, steps: Iterable[list[int]], *, processes: int) -> Iterator[list[Example]]:
    """Yield the examples of one list of indices after another, in their order.

    ``processes`` decode ahead where the data set is too large to be kept in memory; each would keep its own copy.
    They live until the last step, through all epochs.

    Raises:
        BadInputError: A file cannot be decoded.
    """
    if processes == 0 or dataset.fits_in_memory:
        for indices in steps:
            yield [dataset[index] for index in indices]
        return
    # Forked from a clean server, not from here: a fork would take along the training process's threads' locks, its
    # CUDA context, and its channel to the worker, which would then not see the end of the stream when we die.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    loader: DataLoader[_Packed | BadInputError] = DataLoader(
        _Reader(dataset),
        sampler=list(steps),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=processes,
        multiprocessing_context=context,
        worker_init_fn=_die_with_parent,
        # Its own generator: by default a loader draws from the global one, which belongs to the training step.
        generator=torch.Generator(),
    )
    for packed in loader:
        if isinstance(packed, BadInputError):
            raise packed
        yield packed.unpack()


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """One step's examples on their way between processes: one block of shared memory, not one for each example."""

    features: Float[Tensor, "batch mels frames"]
    teacher_features: Float[Tensor, "batch teacher_mels teacher_frames"] | None
    """None where they are the student's."""
    num_frames: tuple[int, ...]
    token_ids: tuple[tuple[int, ...], ...]

    def unpack(self) -> list[Example]:
        examples = []
        for index, features in enumerate(self.features):
            examples.append(
                Example(
                    features=features,
                    teacher_features=features if self.teacher_features is None else self.teacher_features[index],
                    num_frames=self.num_frames[index],
                    token_ids=self.token_ids[index],
                )
            )
        return examples


class _Reader(Dataset["_Packed | BadInputError"]):
    """What a loader process runs. Bad input is handed over, not raised: torch would wrap it into a traceback."""

    def __init__(self, dataset: AudioDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, indices: list[int]) -> _Packed | BadInputError:
        try:
            examples = [self._dataset[index] for index in indices]
        except BadInputError as exc:
            return BadInputError(str(exc))
        is_shared = examples[0].teacher_features is examples[0].features
        return _Packed(
            features=torch.stack([example.features for example in examples]),
            teacher_features=None if is_shared else torch.stack([example.teacher_features for example in examples]),
            num_frames=tuple(example.num_frames for example in examples),
            token_ids=tuple(example.token_ids for example in examples),
        )


def _as_it_is(packed: Any) -> Any:
    return packed


def _die_with_parent(_: int) -> None:
    """End this process as soon as the one that reads from it ends, however that ended.

    torch looks whether its parent process lives, and here that is the fork server, which in turn lives as long as we.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
