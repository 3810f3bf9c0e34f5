"""The terms of the loss: pure functions that return a sum and how many tokens or frames it is over.

A sum, not a mean: the loop divides once per optimizer step by the step's own count, so the gradient does not depend
on how the batch was split. All are computed in float32 (float64 where they are given it) with autocast off: CPU
autocast leaves log_softmax and norms in bfloat16, and a sum of a hundred thousand probabilities needs better than that.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100
"""Label of a position that no loss looks at: the prompt and the padding."""

SumAndCount = tuple[Float[Tensor, ""], Int[Tensor, ""]]


@dataclass(frozen=True, kw_only=True)
class Blend:
    """TAID's target, between the student's own distribution and the teacher's (arXiv:2501.16937)."""

    share: Float[Tensor, ""]
    """The teacher's share λ: 0 is the student itself, 1 the teacher. On the losses' device, so that nothing waits."""
    space: Literal["logit", "prob"]
    """What is interpolated, see ``blend``."""


def cross_entropy(logits: Float[Tensor, "*points vocab"], labels: Int[Tensor, "*points"]) -> SumAndCount:
    """Cross-entropy in nats against the transcript, over the labels that are not ``IGNORED``."""
    with torch.autocast(logits.device.type, enabled=False):
        total = F.cross_entropy(_widen(logits).flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (labels != IGNORED).sum()


def kl_to_teacher(
    student_logits: Float[Tensor, "points vocab"],
    teacher_logits: Float[Tensor, "points vocab"],
    *,
    temperature: float,
    towards: Blend | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """KL(teacher ‖ student) in nats, both softened by ``temperature``; and the target's entropy, for TAID's schedule.

    Scaled by temperature² so that gradients keep their size (Hinton et al. 2015, arXiv:1503.02531, §2). The KL form,
    not the cross-entropy form: the latter adds temperature² times the target's entropy, which no student can lower.

    ``towards`` puts TAID's target in the teacher's place; both are softened before they are interpolated (in logit
    space the order makes no difference), and temperature² scales the result as without TAID. The entropy, in nats,
    unscaled and without gradient, is computed only then, and 0 otherwise.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        student = F.log_softmax(_widen(student_logits) / temperature, dim=-1)
        target = F.log_softmax(_widen(teacher_logits) / temperature, dim=-1)
        entropy = torch.zeros((), dtype=student.dtype, device=student.device)
        if towards is not None:
            target = blend(student, target, towards)
            entropy = -(target.exp() * target).sum()
        total = F.kl_div(student, target, log_target=True, reduction="sum") * temperature**2
    return total, entropy


@torch.no_grad()
def blend(
    student: Float[Tensor, "points vocab"], teacher: Float[Tensor, "points vocab"], towards: Blend
) -> Float[Tensor, "points vocab"]:
    """Interpolate two log-distributions as TAID does; no gradient flows into the target.

    ``logit``: softmax((1-λ)·student + λ·teacher), as in Sakana AI's code (SakanaAI/TAID, src/distil_losses/taid.py).
    Log-probabilities differ from logits by a constant per token, which the softmax takes out again.

    ``prob``: (1-λ)·student + λ·teacher. **The KL to this target has exactly λ times the gradient of the KL to the
    teacher**: the gradient by the student's logits is student - target, and that is λ·(student - teacher). It is a
    schedule on ``kl_weight``, and no other path from student to teacher, whatever the loss's value suggests.
    """
    if towards.space == "logit":
        return F.log_softmax((1.0 - towards.share) * student + towards.share * teacher, dim=-1)
    return torch.logaddexp(student + torch.log1p(-towards.share), teacher + torch.log(towards.share))


def geodesic(
    student_states: Float[Tensor, "batch time width"],
    teacher_states: Float[Tensor, "batch time width"],
    mask: Bool[Tensor, "batch time"],
) -> SumAndCount:
    """Angle in radians between the states as points of the unit sphere, over the unmasked positions.

    ``2·atan2(‖s-t‖, ‖s+t‖)`` (Kahan's form) in place of ``acos(s·t)``, whose gradient is infinite at 0 and at π; any
    clamp that tames it also silences it at small angles.
    """
    with torch.autocast(student_states.device.type, enabled=False):
        student = F.normalize(_widen(student_states), dim=-1, eps=1e-6)
        teacher = F.normalize(_widen(teacher_states), dim=-1, eps=1e-6)
        angle = 2.0 * torch.atan2((student - teacher).norm(dim=-1), (student + teacher).norm(dim=-1))
        total = (angle * mask).sum()
    return total, mask.sum()


def hidden_mse(
    student_states: Float[Tensor, "batch time width"],
    teacher_states: Float[Tensor, "batch time width"],
    mask: Bool[Tensor, "batch time"],
) -> SumAndCount:
    """Mean over the width of the states' squared difference, over the unmasked positions; in their units, squared.

    A mean over the width, so that a teacher of twice the width asks for no other weight.
    """
    with torch.autocast(student_states.device.type, enabled=False):
        squared = (_widen(student_states) - _widen(teacher_states)).square().mean(dim=-1)
        total = (squared * mask).sum()
    return total, mask.sum()


def _widen(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return half precision as float32, and what is wide enough as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
