"""Speech as tensors: single examples, and padding."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainer.audio import SAMPLE_RATE, read_mono
from trainer.features import LogMel
from trainer.losses import IGNORED
from trainer.utterances import Scan, Utterance
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


class AudioDataset:
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
        self._origin: str | None = None
        """Of a relabelled data set: the fingerprint that it had before."""

    @property
    def token_counts(self) -> tuple[int, ...]:
        """Length of each transcript in tokens: what a batch is padded to."""
        return tuple(map(len, self._token_ids))

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
        """Return a digest of names, lengths and tokens: where the files lie does not matter, what they are does.

        A relabelled data set has the digest that it had before: on another device a teacher may hear a word otherwise,
        and a run must go on there all the same.
        """
        if self._origin is not None:
            return self._origin
        digest = hashlib.sha256()
        for utterance, token_ids in zip(self.utterances, self._token_ids, strict=True):
            header = utterance.header
            digest.update(f"{utterance.name} {header.num_frames} {header.sample_rate} {token_ids}\n".encode())
        return digest.hexdigest()

    def relabel(self, scanned: Scan, token_ids: Sequence[tuple[int, ...]]) -> "AudioDataset":
        """Return some of the utterances with other transcripts; features that were computed are kept."""
        relabelled = copy.copy(self)
        relabelled.scan, relabelled.utterances, relabelled._token_ids = scanned, scanned.utterances, tuple(token_ids)
        relabelled._origin = self.fingerprint()
        index_of = {utterance.name: index for index, utterance in enumerate(self.utterances)}
        relabelled._kept = {
            new: replace(self._kept[old], token_ids=token_ids[new])
            for new, utterance in enumerate(scanned.utterances)
            if (old := index_of[utterance.name]) in self._kept
        }
        return relabelled


def build_dataset(scanned: Scan, vocabulary: Vocabulary, log_mel: LogMel, teacher_log_mel: LogMel) -> AudioDataset:
    """Tokenise a scan, leaving out (and counting) what does not fit into the model.

    Raises:
        BadInputError: Nothing is left.
    """
    rows = vocabulary.encode([utterance.text for utterance in scanned.utterances])
    window_samples = min(log_mel.window_samples, teacher_log_mel.window_samples)
    reasons = [
        f"longer than the model's window of {window_samples / SAMPLE_RATE:g} s"
        if utterance.header.num_samples > window_samples
        else reason_against_tokens(row, vocabulary)
        for utterance, row in zip(scanned.utterances, rows, strict=True)
    ]
    kept_rows = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    return AudioDataset(scanned.keep(reasons), kept_rows, log_mel, teacher_log_mel)


def reason_against_tokens(token_ids: Sequence[int], vocabulary: Vocabulary) -> str | None:
    """Return why a transcript does not fit into the model, or None."""
    longest = vocabulary.max_positions - len(vocabulary.prompt)
    return f"transcript longer than the model's {longest} tokens" if len(token_ids) > longest else None


def collate(examples: Sequence[Example], vocabulary: Vocabulary, *, pin_memory: bool = False) -> Batch:
    """Pad examples to the longest transcript among them.

    ``pin_memory`` puts the features where a GPU copies them from while the process goes on.
    """
    prompt = list(vocabulary.prompt)
    features = _stack([example.features for example in examples], pin_memory)
    is_shared = examples[0].teacher_features is examples[0].features
    inputs = [torch.tensor([*prompt, *example.token_ids]) for example in examples]
    # The prompt is given, not decoded: nothing is learnt from predicting it.
    unlabelled = [IGNORED] * (len(prompt) - 1)
    labels = [torch.tensor([*unlabelled, *example.token_ids, vocabulary.end]) for example in examples]
    padded_labels = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    num_frames = torch.tensor([example.num_frames for example in examples])
    return Batch(
        features=features,
        teacher_features=features
        if is_shared
        else _stack([example.teacher_features for example in examples], pin_memory),
        frame_mask=torch.arange(-(-features.shape[-1] // 2))[None, :] < num_frames[:, None],
        decoder_input_ids=pad_sequence(inputs, batch_first=True, padding_value=vocabulary.end),
        labels=padded_labels,
        token_mask=padded_labels != IGNORED,
    )


def _stack(tensors: Sequence[Tensor], pin_memory: bool) -> Tensor:
    """Stack into pinned memory at once: pinning a finished batch would copy it once more."""
    out = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype, pin_memory=pin_memory)
    return torch.stack(list(tensors), out=out)
