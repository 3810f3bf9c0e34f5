"""How far TAID's target has moved from the student to the teacher (Sakana AI, arXiv:2501.16937)."""

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.config import TaidSpec
from trainer.schedules import move_target


class Taid:
    """The teacher's share, and what the adaptive schedule remembers. On the run's device, so that nothing waits.

    Attributes:
        share: λ of the step that is being taken, or was taken last.
        previous_loss: Infinite before the first step.
        momentum: Of the loss's relative fall.
    """

    def __init__(self, spec: TaidSpec, device: torch.device) -> None:
        self.spec = spec
        self.share = torch.tensor(spec.start, dtype=torch.float64, device=device)
        self.previous_loss = torch.full_like(self.share, torch.inf)
        self.momentum = torch.zeros_like(self.share)

    def set_share(self, fraction: float) -> None:
        """Set λ for the step in whose middle ``fraction`` of the budget is spent.

        The linear ramp is the linear schedule itself, and the adaptive one's lower bound.
        """
        ramp = torch.full_like(self.share, move_target(fraction, start=self.spec.start, end=self.spec.end))
        self.share = ramp if self.spec.schedule == "linear" else torch.maximum(self.share, ramp)

    def adapt_share(self, loss: Float[Tensor, ""]) -> None:
        """Move λ on after an optimizer step, by how much its loss fell; the adaptive schedule's part only.

        The update is that of SakanaAI/TAID (src/distil_losses/taid.py). ``loss`` is the whole step's mean of the
        cross-entropy between target and student, as there: unlike the KL it is not near 0 when λ is, where its relative
        change would be noise. Called once per optimizer step: λ does not depend on micro-batches. Its pace is per step,
        as there, so that within one budget in examples a smaller batch moves further.
        """
        if self.spec.schedule == "linear":
            return
        loss = loss.double()
        is_first = self.previous_loss.isinf()
        fall = (self.previous_loss - loss) / (self.previous_loss + 1e-15)
        momentum = self.spec.beta * self.momentum + (1.0 - self.spec.beta) * fall
        moved = self.share + self.spec.alpha * momentum.sigmoid() * (1.0 - self.share)
        self.share = torch.where(is_first, self.share, moved.clamp(max=self.spec.end))
        self.momentum = torch.where(is_first, self.momentum, momentum)
        self.previous_loss = loss

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {"share": self.share, "previous_loss": self.previous_loss, "momentum": self.momentum}

    def load_state_dict(self, content: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.share, self.previous_loss = content["share"], content["previous_loss"]
        self.momentum = content["momentum"]
