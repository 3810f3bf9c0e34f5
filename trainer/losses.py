"""The terms of the loss: pure functions that return a sum and how many tokens or frames it is over.

A sum, not a mean: the loop divides once per optimizer step by the step's own count, so the gradient does not depend
on how the batch was split. All are computed in float32 with autocast off: CPU autocast leaves log_softmax and norms
in bfloat16, and a sum of a hundred thousand probabilities needs better than that.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100
"""Label of a position that no loss looks at: the prompt and the padding."""

SumAndCount = tuple[Float[Tensor, ""], Int[Tensor, ""]]


def cross_entropy(logits: Float[Tensor, "batch tokens vocab"], labels: Int[Tensor, "batch tokens"]) -> SumAndCount:
    """Cross-entropy in nats against the transcript, over the labels that are not ``IGNORED``."""
    with torch.autocast(logits.device.type, enabled=False):
        total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (labels != IGNORED).sum()


def kl_to_teacher(
    student_logits: Float[Tensor, "batch tokens vocab"],
    teacher_logits: Float[Tensor, "batch tokens vocab"],
    mask: Bool[Tensor, "batch tokens"],
    *,
    temperature: float,
) -> SumAndCount:
    """KL(teacher ‖ student) in nats, both softened by ``temperature``, over the unmasked tokens.

    Scaled by temperature² so that gradients keep their size (Hinton et al. 2015, arXiv:1503.02531, §2). The KL form,
    not the cross-entropy form: the latter adds temperature² times the teacher's entropy, which no student can lower.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        # Only the real tokens are softened: padding can be most of a batch, and a vocabulary is 50 thousand wide.
        student = F.log_softmax(student_logits[mask].float() / temperature, dim=-1)
        teacher = F.log_softmax(teacher_logits[mask].float() / temperature, dim=-1)
        total = F.kl_div(student, teacher, log_target=True, reduction="sum") * temperature**2
    return total, mask.sum()


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
        student = F.normalize(student_states.float(), dim=-1, eps=1e-6)
        teacher = F.normalize(teacher_states.float(), dim=-1, eps=1e-6)
        angle = 2.0 * torch.atan2((student - teacher).norm(dim=-1), (student + teacher).norm(dim=-1))
        total = (angle * mask).sum()
    return total, mask.sum()
