"""The frozen teacher, and what it gives to a trial."""

import copy
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from trainer.batches import Batch
from trainer.config import LossSpec
from trainer.pretrained import Pretrained
from trainer.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class TeacherNeeds:
    """Which of the teacher's outputs somebody will look at; the others are not computed."""

    logits: bool = False
    encoder_states: bool = False
    decoder_states: bool = False


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """What the teacher says about a batch; None where it was not asked."""

    logits: Float[Tensor, "batch tokens vocab"] | None = None
    encoder_states: Float[Tensor, "batch time width"] | None = None
    decoder_states: Float[Tensor, "batch tokens width"] | None = None


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
        if not (needs.logits or needs.decoder_states):
            return TeacherOutputs(encoder_states=encoder_states)
        decoder_states = self.model.model.decoder(
            input_ids=batch.decoder_input_ids, encoder_hidden_states=encoder_states, use_cache=False
        ).last_hidden_state
        return TeacherOutputs(
            logits=self.model.proj_out(decoder_states) if needs.logits else None,
            encoder_states=encoder_states if needs.encoder_states else None,
            decoder_states=decoder_states if needs.decoder_states else None,
        )


def needs_of(loss: LossSpec) -> TeacherNeeds:
    """Return what the training loss looks at."""
    has_geodesic = loss.geo_weight > 0
    return TeacherNeeds(
        logits=loss.kl_weight > 0,
        encoder_states=has_geodesic and loss.geo_states == "encoder",
        decoder_states=has_geodesic and loss.geo_states == "decoder",
    )


def place_teacher(pretrained: Pretrained, runtime: Runtime) -> WhisperForConditionalGeneration:
    """Return the frozen model on the run's device, in the precision that the run computes in."""
    model: Any = pretrained.model
    if model.device != runtime.device or model.dtype != runtime.dtype:
        model = copy.deepcopy(model).to(runtime.device, runtime.dtype)
    return model
