"""What each term of the loss reaches, measured by a backward pass before GPU time is spent on terms that reach nothing.

A frozen encoder and a geodesic term on encoder states, for one, train nothing but the projector, which is thrown away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.batches import Batch, collate
from trainer.config import LossSpec, TrialSpec
from trainer.errors import BadInputError
from trainer.events import TermReach
from trainer.material import Material
from trainer.runtime import mix_seed
from trainer.state import TERMS, start_state
from trainer.step import sum_terms
from trainer.students import Student, seeded
from trainer.teacher import needs_of

PROBE_DROPOUT = 0.5
DISTURBANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What the configuration lets the loss, and dropout, change."""

    terms: tuple[TermReach, ...]
    has_dropout: bool
    """Whether ``student.dropout`` changes what the student says in training."""
    parameters: int
    trainable_parameters: int
    trainable_tensors: int


def measure_reach(spec: TrialSpec, material: Material) -> Reach:
    """Build the student and run each term of the loss backward, alone and with weight 1, on one or two utterances.

    In float32, and with weights moved a little from where a run starts: there an adapter's ``lora_A`` has no gradient
    yet, and a student that is a copy of its teacher none from KL, though both will.

    Raises:
        BadInputError: The student cannot be built, or a tensor that should learn gets no gradient from any term.
    """
    loss = with_every_term(spec.loss)
    student_spec = spec.student.model_copy(update={"dropout": PROBE_DROPOUT})
    state = start_state(spec.model_copy(update={"loss": loss, "student": student_spec}), material)
    student, trainable = state.student.eval(), state.student.trainable()
    with torch.no_grad(), seeded(mix_seed(spec.seed, 4)):
        for parameter in trainable.values():
            parameter.add_(torch.randn(parameter.shape).to(parameter), alpha=DISTURBANCE)
    count = min(2, spec.optim.micro_batch_size or spec.optim.batch_size, len(material.train))
    batch = collate([material.train[index] for index in range(count)], material.vocabulary)
    batch = batch.to(material.runtime.device)
    said = material.teacher.outputs(batch, needs_of(loss))
    sums = sum_terms(state, student(batch), said, batch, loss)
    # One backward pass each; the last sum is the target's entropy, which nothing learns from.
    reached = {term: _reached(total, trainable) for term, total in zip(TERMS[1:-1], sums, strict=False)}
    _require_all(trainable, set().union(*reached.values()))
    return Reach(
        terms=tuple(TermReach(term=term, tensors=len(names)) for term, names in reached.items()),
        has_dropout=_has_dropout(student, batch),
        parameters=student.count_parameters(),
        trainable_parameters=student.count_trainable(),
        trainable_tensors=len(trainable),
    )


def with_every_term(loss: LossSpec) -> LossSpec:
    """Return the loss with weight 1 for every term, so that each is computed."""
    weights = {name: 1.0 for name in type(loss).model_fields if name.endswith("_weight")}
    return loss.model_copy(update=weights)


def _reached(total: Tensor, trainable: dict[str, nn.Parameter]) -> set[str]:
    """Return the names of the tensors with a gradient that is not zero everywhere."""
    if not total.requires_grad:
        return set()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        total, list(trainable.values()), retain_graph=True, allow_unused=True
    )
    return {
        name for name, each in zip(trainable, gradients, strict=True) if each is not None and bool(each.any())
    }  # GPU synchronisation


def _require_all(trainable: dict[str, nn.Parameter], reached: set[str]) -> None:
    left_out = [name for name in trainable if name not in reached]
    if left_out:
        raise BadInputError(
            f"no term of the loss reaches {len(left_out)} of the student's {len(trainable)} trainable tensors, such as "
            f"{left_out[0]}; freeze what they belong to, or correct student.lora.targets"
        )


@torch.no_grad()
def _has_dropout(student: Student, batch: Batch) -> bool:
    student.train()
    with seeded(0):
        first, second = student(batch).decoder_states, student(batch).decoder_states
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-3)
