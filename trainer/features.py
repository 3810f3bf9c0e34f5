"""Log-mel features, as the model's own feature extractor defines them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import WhisperFeatureExtractor


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """Turns a waveform into what a Whisper encoder takes: padded with silence to the model's window."""

    extractor: WhisperFeatureExtractor

    @property
    def sample_rate(self) -> int:
        """Samples per second that the model expects."""
        return int(self.extractor.sampling_rate)

    @property
    def window_samples(self) -> int:
        """Length of the model's window; longer audio would be cut."""
        return int(self.extractor.n_samples)

    @property
    def bytes_per_utterance(self) -> int:
        """Memory of one utterance's features."""
        return int(self.extractor.feature_size * self.extractor.nb_max_frames * 4)

    def is_same_as(self, other: "LogMel") -> bool:
        """Whether both make the same features of the same waveform."""
        names = ("feature_size", "sampling_rate", "hop_length", "n_fft", "n_samples", "padding_value", "dither")
        return all(getattr(self.extractor, name) == getattr(other.extractor, name) for name in names)

    def __call__(self, waveform: NDArray[np.float32]) -> Float[Tensor, "mels frames"]:
        """Compute the features of one utterance."""
        features = self.extractor(waveform, sampling_rate=self.sample_rate, return_tensors="np")["input_features"]
        return torch.from_numpy(features[0])

    def count_encoder_frames(self, num_samples: int) -> int:
        """Return how many of the encoder's frames hold audio; the rest are padding.

        The spectrogram makes one frame per hop, and the encoder's second convolution (stride 2, padding 1) keeps
        every other one.
        """
        mel_frames = -(-min(num_samples, self.window_samples) // int(self.extractor.hop_length))
        return -(-mel_frames // 2)
