"""The student: a Whisper made from another one's layers, and the projector that the geodesic term needs."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from trainer.adapters import add_adapters, require_trainable
from trainer.batches import Batch
from trainer.errors import BadInputError
from trainer.pretrained import Pretrained
from trainer.runtime import mix_seed
from trainer.student_spec import LayersSpec, WhisperStudentSpec


@dataclass(frozen=True, kw_only=True)
class StudentOutputs:
    """What the student says about a batch."""

    encoder_states: Float[Tensor, "batch time width"]
    decoder_states: Float[Tensor, "batch tokens width"]
    head: nn.Linear
    """Makes logits of ``decoder_states``; not applied here, for all of them at once may not fit into memory."""


class Student(nn.Module):
    """A Whisper whose frozen side stays in ``eval()`` and out of the graph. A side with adapters is not frozen."""

    def __init__(self, whisper: WhisperForConditionalGeneration, *, frozen_encoder: bool, frozen_decoder: bool) -> None:
        super().__init__()
        self.whisper = whisper
        self.frozen_encoder = frozen_encoder
        self.frozen_decoder = frozen_decoder
        whisper.model.encoder.requires_grad_(not frozen_encoder)
        whisper.model.encoder.embed_positions.requires_grad_(False)  # sinusoids, fixed in every Whisper
        whisper.model.decoder.requires_grad_(not frozen_decoder)  # with it the output layer, which is tied to it
        self.train(False)

    def train(self, mode: bool = True) -> "Student":
        """Switch the sides that learn; dropout in a frozen one would make it another model at each step."""
        super().train(mode)
        self.whisper.model.encoder.train(mode and not self.frozen_encoder)
        self.whisper.model.decoder.train(mode and not self.frozen_decoder)
        return self

    def encode(self, features: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch time width"]:
        """Run the encoder, without a graph where it is frozen."""
        encoder = self.whisper.model.encoder
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_encoder):
            states = encoder(features.to(encoder.dtype)).last_hidden_state
        assert not (self.frozen_encoder and states.requires_grad), "something revived the frozen encoder's graph"
        return states

    def decode(
        self, encoder_states: Float[Tensor, "batch time width"], decoder_input_ids: Int[Tensor, "batch tokens"]
    ) -> StudentOutputs:
        """Run the decoder, teacher-forced."""
        decoder_states = self.whisper.model.decoder(
            input_ids=decoder_input_ids, encoder_hidden_states=encoder_states, use_cache=False
        ).last_hidden_state
        return StudentOutputs(encoder_states=encoder_states, decoder_states=decoder_states, head=self.whisper.proj_out)

    def forward(self, batch: Batch) -> StudentOutputs:
        """Run both."""
        return self.decode(self.encode(batch.features), batch.decoder_input_ids)

    def checkpoint_activations(self) -> None:
        """Keep only the layers' inputs of a side that learns, and compute the rest again in the backward pass."""
        for side, is_frozen in (
            (self.whisper.model.encoder, self.frozen_encoder),
            (self.whisper.model.decoder, self.frozen_decoder),
        ):
            if not is_frozen:
                side.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
                # Enabled along with it for the reentrant kind; ours needs no gradient at the embeddings.
                side.disable_input_require_grads()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that learn, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def count_parameters(self) -> int:
        """Return how many numbers the model has, tied ones once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def count_trainable(self) -> int:
        """Return how many of them learn."""
        return sum(parameter.numel() for parameter in self.trainable().values())


class RiemannianProjector(nn.Module):
    """Maps the student's states to the unit sphere of the teacher's: linear, then L2. Thrown away after training."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student_width, teacher_width)

    def forward(self, states: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time teacher_width"]:
        """Project; the norm is taken in float32."""
        return F.normalize(self.linear(states).float(), dim=-1, eps=1e-6)


def build_student(spec: WhisperStudentSpec, source: Pretrained, seed: int) -> Student:
    """Make a student of the source's kept layers, in float32 on the CPU: the same for a seed, whatever ran before.

    Raises:
        BadInputError: More layers, or others, are asked for than the source has; or its adapters match no layers, or
            the wrong ones.
    """
    encoder_layers = choose_layers(spec.encoder, source.config.encoder_layers, f"student.encoder of {source.name}")
    decoder_layers = choose_layers(spec.decoder, source.config.decoder_layers, f"student.decoder of {source.name}")
    config = copy.deepcopy(source.config)
    config.encoder_layers, config.decoder_layers = len(encoder_layers), len(decoder_layers)
    config.num_hidden_layers = len(encoder_layers)
    config.dropout = spec.dropout
    # Other sources of randomness than the searched one are off: LayerDrop, and SpecAugment, which writes in place.
    config.encoder_layerdrop = config.decoder_layerdrop = 0.0
    config.apply_spec_augment = False
    config.dtype = torch.float32
    with seeded(mix_seed(seed, 1)):
        whisper = WhisperForConditionalGeneration(config)
    whisper.generation_config = copy.deepcopy(source.model.generation_config)
    tensors = source.model.state_dict()
    for name, tensor in whisper.state_dict().items():
        origin = _find_origin(name, spec, encoder_layers, decoder_layers)
        if origin is not None:
            tensor.copy_(tensors[origin])
    return _let_learn(whisper, spec, seed)


def _let_learn(whisper: WhisperForConditionalGeneration, spec: WhisperStudentSpec, seed: int) -> Student:
    """Freeze what the configuration freezes, and add its adapters."""
    lora = spec.lora
    student = Student(
        whisper,
        frozen_encoder=spec.encoder.frozen and not (lora is not None and lora.encoder),
        frozen_decoder=spec.decoder.frozen and lora is None,
    )
    targets: tuple[str, ...] = ()
    if lora is not None:
        free = [] if spec.encoder.frozen else [p for p in whisper.model.encoder.parameters() if p.requires_grad]
        with seeded(mix_seed(seed, 3)):
            targets = add_adapters(whisper, lora, dropout=spec.dropout)
        for parameter in free:  # PEFT froze them with all the rest
            parameter.requires_grad_(True)
        student.train(False)
    require_trainable(student, spec, targets)
    return student


def build_projector(student_width: int, teacher_width: int, seed: int) -> RiemannianProjector:
    """Make a projector; the same for the same seed, whatever ran before."""
    with seeded(mix_seed(seed, 2)):
        return RiemannianProjector(student_width, teacher_width)


def build_hidden_projector(student_width: int, teacher_width: int, seed: int) -> nn.Linear:
    """Make the hidden-state error's own projector, thrown away after training; the same for the same seed.

    Not the geodesic term's, even where both compare the same states: that one may scale its output as it likes, for it
    is normalised, and this one may not. Without normalisation, and also where the widths are equal.
    """
    with seeded(mix_seed(seed, 3)):
        return nn.Linear(student_width, teacher_width)


def choose_layers(spec: LayersSpec, available: int, whose: str) -> tuple[int, ...]:
    """Return which of ``available`` layers are kept.

    A number of layers is spread as widely as can be and always takes the last, whose output the rest of the model
    knows (distil-whisper, create_student_model.py): 4 of 12 are 0, 3, 7, 11.

    Raises:
        BadInputError: There are not as many.
    """
    if spec.keep == "all":
        return tuple(range(available))
    if isinstance(spec.keep, int):
        if spec.keep > available:
            raise BadInputError(f"{whose} keeps {spec.keep} layers but there are {available}; lower keep")
        indices = np.linspace(0, available - 1, spec.keep, dtype=int)
        indices[-1] = available - 1
        return tuple(int(index) for index in indices)
    if not spec.keep or max(spec.keep) >= available:
        raise BadInputError(f"{whose} keeps layers {list(spec.keep)}; give indices from 0 to {available - 1}")
    return spec.keep


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed of one's own, and leave the CPU's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _find_origin(
    name: str, spec: WhisperStudentSpec, encoder_layers: tuple[int, ...], decoder_layers: tuple[int, ...]
) -> str | None:
    """Return which tensor of the source a tensor of the student starts as, or None where it starts at random."""
    is_encoder = name.startswith("model.encoder.")
    side, kept = (spec.encoder, encoder_layers) if is_encoder else (spec.decoder, decoder_layers)
    prefix = "model.encoder.layers." if is_encoder else "model.decoder.layers."
    if name.startswith(prefix):
        index, _, rest = name.removeprefix(prefix).partition(".")
        return None if side.init == "random" else f"{prefix}{kept[int(index)]}.{rest}"
    is_front_end = "conv" in name or "embed_tokens" in name or "proj_out" in name
    is_learnt_position = name == "model.decoder.embed_positions.weight"
    return None if side.init == "random" and (is_front_end or is_learnt_position) else name
