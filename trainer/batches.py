"""Speech as tensors: single examples, padding, and which examples the next step sees."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from trainer.audio import SAMPLE_RATE, read_mono
from trainer.data import Scan, Utterance
from trainer.features import LogMel
from trainer.losses import IGNORED
from trainer.vocabulary import Vocabulary

MEMORY_LIMIT_BYTES = 2 * 2**30
"""A data set whose features fit in here is kept decoded, so that later epochs and trials read no audio."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One utterance, ready for a model."""

    features: Float[Tensor, "mels frames"]
    teacher_features: Float[Tensor, "teacher_mels teacher_frames"]
    """The same tensor as ``features`` unless the teacher wants other mel bins."""
    num_frames: int
    """How many of the encoder's frames hold audio."""
    token_ids: tuple[int, ...]
    """The transcript, without prompt and end."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples padded to the longest transcript among them."""

    features: Float[Tensor, "batch mels frames"]
    teacher_features: Float[Tensor, "batch teacher_mels teacher_frames"]
    frame_mask: Bool[Tensor, "batch time"]
    """True for the encoder's frames that hold audio."""
    decoder_input_ids: Int[Tensor, "batch tokens"]
    """Prompt and transcript. Padded on the right, which the causal decoder never looks at."""
    labels: Int[Tensor, "batch tokens"]
    """The token after each input: transcript and end; ``IGNORED`` within the prompt and the padding."""
    token_mask: Bool[Tensor, "batch tokens"]
    """True where there is a label."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; features that are one tensor stay one."""
        features = self.features.to(device, non_blocking=True)
        is_shared = self.teacher_features is self.features
        return Batch(
            features=features,
            teacher_features=features if is_shared else self.teacher_features.to(device, non_blocking=True),
            frame_mask=self.frame_mask.to(device, non_blocking=True),
            decoder_input_ids=self.decoder_input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            token_mask=self.token_mask.to(device, non_blocking=True),
        )


class AudioDataset(Dataset[Example]):
    """Utterances and their token ids; audio is decoded when an example is asked for.

    A data set of up to ``MEMORY_LIMIT_BYTES`` keeps the features that it has computed.
    """

    def __init__(
        self, scanned: Scan, token_ids: Sequence[tuple[int, ...]], log_mel: LogMel, teacher_log_mel: LogMel
    ) -> None:
        self.scan = scanned
        self.utterances: tuple[Utterance, ...] = scanned.utterances
        self._token_ids = tuple(token_ids)
        self._log_mel = log_mel
        self._teacher_log_mel = None if log_mel.is_same_as(teacher_log_mel) else teacher_log_mel
        per_utterance = log_mel.bytes_per_utterance
        per_utterance += self._teacher_log_mel.bytes_per_utterance if self._teacher_log_mel else 0
        self.fits_in_memory = per_utterance * len(self) <= MEMORY_LIMIT_BYTES
        self._kept: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Example:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        utterance = self.utterances[index]
        waveform = read_mono(utterance.audio, utterance.header)
        features = self._log_mel(waveform)
        example = Example(
            features=features,
            teacher_features=self._teacher_log_mel(waveform) if self._teacher_log_mel else features,
            num_frames=self._log_mel.count_encoder_frames(len(waveform)),
            token_ids=self._token_ids[index],
        )
        if self.fits_in_memory:
            self._kept[index] = example
        return example

    def fingerprint(self) -> str:
        """Return a digest of names, lengths and tokens: where the files lie does not matter, what they are does."""
        digest = hashlib.sha256()
        for utterance, token_ids in zip(self.utterances, self._token_ids, strict=True):
            header = utterance.header
            digest.update(f"{utterance.name} {header.num_frames} {header.sample_rate} {token_ids}\n".encode())
        return digest.hexdigest()


def build_dataset(scanned: Scan, vocabulary: Vocabulary, log_mel: LogMel, teacher_log_mel: LogMel) -> AudioDataset:
    """Tokenise a scan, leaving out (and counting) what does not fit into the model.

    Raises:
        BadInputError: Nothing is left.
    """
    rows = vocabulary.encode([utterance.text for utterance in scanned.utterances])
    longest = vocabulary.max_positions - len(vocabulary.prompt)
    window_samples = min(log_mel.window_samples, teacher_log_mel.window_samples)
    reasons = [
        f"longer than the model's window of {window_samples / SAMPLE_RATE:g} s"
        if utterance.header.num_samples > window_samples
        else f"transcript longer than the model's {longest} tokens"
        if len(row) > longest
        else None
        for utterance, row in zip(scanned.utterances, rows, strict=True)
    ]
    kept_rows = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    return AudioDataset(scanned.keep(reasons), kept_rows, log_mel, teacher_log_mel)


def collate(examples: Sequence[Example], vocabulary: Vocabulary) -> Batch:
    """Pad examples to the longest transcript among them."""
    prompt = list(vocabulary.prompt)
    features = torch.stack([example.features for example in examples])
    is_shared = examples[0].teacher_features is examples[0].features
    inputs = [torch.tensor([*prompt, *example.token_ids]) for example in examples]
    # The prompt is given, not decoded: nothing is learnt from predicting it.
    unlabelled = [IGNORED] * (len(prompt) - 1)
    labels = [torch.tensor([*unlabelled, *example.token_ids, vocabulary.end]) for example in examples]
    padded_labels = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    num_frames = torch.tensor([example.num_frames for example in examples])
    return Batch(
        features=features,
        teacher_features=features if is_shared else torch.stack([example.teacher_features for example in examples]),
        frame_mask=torch.arange(-(-features.shape[-1] // 2))[None, :] < num_frames[:, None],
        decoder_input_ids=pad_sequence(inputs, batch_first=True, padding_value=vocabulary.end),
        labels=padded_labels,
        token_mask=padded_labels != IGNORED,
    )


def choose_indices(seed: int, size: int, start: int, stop: int) -> list[int]:
    """Return which examples of a data set of ``size`` a run sees as its ``start``-th to ``stop``-th.

    The run reads one endless stream, each epoch in its own order. The order is a function of the seed and the epoch
    alone, so a run can go on anywhere, and batches of any size walk through the same stream.
    """
    indices: list[int] = []
    while start < stop:
        epoch, offset = divmod(start, size)
        part = _shuffle(seed, epoch, size)[offset : offset + stop - start]
        indices.extend(part.tolist())
        start += len(part)
    return indices


def iterate_steps(
    dataset: AudioDataset, *, seed: int, start: int, stop: int, batch_size: int, processes: int
) -> Iterator[list[Example]]:
    """Yield the examples of one optimizer step after another, from ``start`` examples seen to exactly ``stop``.

    ``processes`` decode ahead where the data set is too large to be kept in memory; each would keep its own copy.
    """
    steps = [
        choose_indices(seed, len(dataset), first, min(first + batch_size, stop))
        for first in range(start, stop, batch_size)
    ]
    if processes == 0 or dataset.fits_in_memory:
        for indices in steps:
            yield [dataset[index] for index in indices]
        return
    # Its own generator: by default a loader draws from the global one, which belongs to the training step.
    yield from DataLoader(
        dataset, batch_sampler=steps, collate_fn=list, num_workers=processes, generator=torch.Generator()
    )


@lru_cache(maxsize=4)
def _shuffle(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(size)
