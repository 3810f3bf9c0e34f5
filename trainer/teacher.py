"""The frozen teacher, and what it gives to a trial."""

import copy
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration
from transformers.utils.import_utils import is_bitsandbytes_available

from trainer.batches import Batch
from trainer.config import LossSpec, TeacherSpec
from trainer.errors import BadInputError
from trainer.pretrained import Pretrained
from trainer.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class TeacherNeeds:
    """Which of the teacher's outputs somebody will look at; the others are not computed."""

    encoder_states: bool = False
    decoder_states: bool = False
    """Also what logits are made of."""


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """What the teacher says about a batch; None where it was not asked."""

    encoder_states: Float[Tensor, "batch time width"] | None = None
    decoder_states: Float[Tensor, "batch tokens width"] | None = None
    head: nn.Linear | None = None
    """Makes logits of ``decoder_states``, with which it comes."""


@runtime_checkable
class TeacherSource(Protocol):
    """Where a trial's teacher outputs come from."""

    def outputs(self, batch: Batch, needs: TeacherNeeds) -> TeacherOutputs:
        """Return the teacher-forced outputs for a batch, without gradients."""
        ...


class OnlineTeacher:
    """Runs the teacher each time it is asked, where it lies; what it says comes back to the batch's device."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        self.model = model
        self._moved_head: nn.Linear | None = None

    def runtime(self, runtime: Runtime) -> Runtime:
        """Return where and how the teacher itself computes, in a run that computes as ``runtime`` says."""
        if self.model.device.type == runtime.device.type:
            return runtime
        return Runtime(device=self.model.device, precision="fp32")

    @torch.no_grad()
    def outputs(self, batch: Batch, needs: TeacherNeeds) -> TeacherOutputs:
        """Run as much of the teacher as the needs take."""
        if needs == TeacherNeeds():
            return TeacherOutputs()
        origin, batch = batch.features.device, batch.to(self.model.device)
        if origin.type == "cuda" and self.model.device.type == "cpu":
            torch.cuda.synchronize(
                origin
            )  # a batch moves without waiting, and the CPU would read what is not there yet
        encoder_states = self.model.model.encoder(batch.teacher_features.to(self.model.dtype)).last_hidden_state
        if not needs.decoder_states:
            return TeacherOutputs(encoder_states=encoder_states.to(origin))
        decoder_states = self.model.model.decoder(
            input_ids=batch.decoder_input_ids, encoder_hidden_states=encoder_states, use_cache=False
        ).last_hidden_state
        return TeacherOutputs(
            encoder_states=encoder_states.to(origin) if needs.encoder_states else None,
            decoder_states=decoder_states.to(origin),
            head=self._head_on(origin),
        )

    def _head_on(self, device: torch.device) -> nn.Linear:
        """Return the output layer where the batch is: a teacher that lies elsewhere sends states, not logits."""
        head: nn.Linear = self.model.proj_out
        if head.weight.device == device:
            return head
        if self._moved_head is None or self._moved_head.weight.device != device:
            self._moved_head = copy.deepcopy(head).to(device)
        return self._moved_head


def needs_of(loss: LossSpec) -> TeacherNeeds:
    """Return what the training loss looks at."""
    compared = {loss.geo_states} if loss.geo_weight > 0 else set()
    compared |= {loss.hidden_states} if loss.hidden_weight > 0 else set()
    return TeacherNeeds(
        encoder_states="encoder" in compared, decoder_states="decoder" in compared or loss.kl_weight > 0
    )


def place_teacher(pretrained: Pretrained, spec: TeacherSpec, runtime: Runtime) -> WhisperForConditionalGeneration:
    """Return the frozen model where the configuration wants it: the run's device and precision, the CPU, or 8 bit.

    Raises:
        BadInputError: 8 bit is asked for and cannot be had here.
    """
    if spec.load_in_8bit:
        return _load_8bit(pretrained.name, runtime)
    on_cpu = spec.device == "cpu"
    device = torch.device("cpu") if on_cpu else runtime.device
    dtype = torch.float32 if on_cpu and runtime.is_cuda else runtime.dtype  # a CPU is slow at half precision
    model: Any = pretrained.model
    if model.device != device or model.dtype != dtype:
        model = copy.deepcopy(model).to(device, dtype)
    return model


def _load_8bit(name: str, runtime: Runtime) -> WhisperForConditionalGeneration:
    """Load the weights a second time: the student's layers come from those that were not rounded."""
    if not runtime.is_cuda:
        raise BadInputError("teacher.load_in_8bit needs a GPU, and this run has none; remove it")
    if not is_bitsandbytes_available():
        raise BadInputError(
            "teacher.load_in_8bit needs bitsandbytes 0.46.1 or newer; install it, for example by the extra 8bit"
        )
    model: Any = WhisperForConditionalGeneration.from_pretrained(
        name,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map={"": runtime.device},
        dtype=torch.float16,
    )
    return model.eval().requires_grad_(False)
