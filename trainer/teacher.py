"""The frozen teacher, and what it gives to a trial."""

import copy
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from trainer.batches import Batch
from trainer.config import LossSpec
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
    """Runs the teacher each time it is asked."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        self.model = model

    @torch.no_grad()
    def outputs(self, batch: Batch, needs: TeacherNeeds) -> TeacherOutputs:
        """Run as much of the teacher as the needs take."""
        if needs == TeacherNeeds():
            return TeacherOutputs()
        encoder_states = self.model.model.encoder(batch.teacher_features.to(self.model.dtype)).last_hidden_state
        if not needs.decoder_states:
            return TeacherOutputs(encoder_states=encoder_states)
        decoder_states = self.model.model.decoder(
            input_ids=batch.decoder_input_ids, encoder_hidden_states=encoder_states, use_cache=False
        ).last_hidden_state
        return TeacherOutputs(
            encoder_states=encoder_states if needs.encoder_states else None,
            decoder_states=decoder_states,
            head=self.model.proj_out,
        )


def needs_of(loss: LossSpec) -> TeacherNeeds:
    """Return what the training loss looks at."""
    compared = {loss.geo_states} if loss.geo_weight > 0 else set()
    compared |= {loss.hidden_states} if loss.hidden_weight > 0 else set()
    return TeacherNeeds(
        encoder_states="encoder" in compared, decoder_states="decoder" in compared or loss.kl_weight > 0
    )


def place_teacher(pretrained: Pretrained, runtime: Runtime) -> WhisperForConditionalGeneration:
    """Return the frozen model on the run's device, in the precision that the run computes in."""
    model: Any = pretrained.model
    if model.device != runtime.device or model.dtype != runtime.dtype:
        model = copy.deepcopy(model).to(runtime.device, runtime.dtype)
    return model
