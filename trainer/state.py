"""Everything that affects a run's next step, and how it is built."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from trainer.config import OptimSpec, TrialSpec
from trainer.errors import BadInputError
from trainer.events import Evaluated, HistoryRow
from trainer.material import Material
from trainer.students import RiemannianProjector, Student, build_hidden_projector, build_projector, build_student
from trainer.taid import Taid

TERMS = ("loss", "cross_entropy", "kl", "geodesic", "hidden", "target_entropy")
"""The loss and its terms, unweighted; the last, of TAID's target, is no term but what its schedule looks at."""


@dataclass(kw_only=True)
class TrainState:
    """Where a run stands. No random state is in it: a step's randomness follows from the seed and ``examples``."""

    student: Student
    projector: RiemannianProjector | None
    """None where no geodesic term is trained."""
    hidden_projector: nn.Linear | None
    """None where no hidden-state error is trained."""
    taid: Taid | None
    """None where the KL's target is the teacher."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    examples: int = 0
    """Utterances seen."""
    steps: int = 0
    scheduled_examples: int = 0
    """Utterances seen in steps that moved the weights: fp16 skips some, and the schedule waits for them."""
    sums: torch.Tensor
    """The terms of the loss, each summed over the steps since the last row of the history."""
    num_summed: int = 0
    history: list[HistoryRow] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    has_proved_gradients: bool = False
    """Whether every adapter was seen to have received a gradient; not kept in a checkpoint."""
    micro_batch_size: int | None = None
    """What was found to fit, after the device's memory ran out; not kept in a checkpoint."""
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @property
    def projectors(self) -> list[nn.Module]:
        """What learns and is thrown away."""
        return [module for module in (self.projector, self.hidden_projector) if module is not None]


def start_state(spec: TrialSpec, material: Material) -> TrainState:
    """Build student, projector and optimizer as they are before the first step; a function of spec and material alone.

    Raises:
        BadInputError: The student cannot be built, or nothing of it would learn.
    """
    device = material.runtime.device
    student = build_student(spec.student, material.source, spec.seed).to(device).train()
    if not student.trainable():
        raise BadInputError("no parameter of the student learns; keep a layer that is not frozen")
    if spec.runtime.activation_checkpointing:
        student.checkpoint_activations()
    widths = int(student.whisper.config.d_model), material.teacher_width
    loss = spec.loss
    projector = build_projector(*widths, spec.seed).to(device) if loss.geo_weight > 0 else None
    hidden_projector = build_hidden_projector(*widths, spec.seed).to(device) if loss.hidden_weight > 0 else None
    projectors = [module for module in (projector, hidden_projector) if module is not None]
    return TrainState(
        student=student,
        projector=projector,
        hidden_projector=hidden_projector,
        taid=Taid(loss.taid, device) if loss.taid and loss.kl_weight > 0 else None,
        optimizer=build_optimizer(spec.optim, student, projectors),
        scaler=material.runtime.make_scaler(),
        sums=torch.zeros(len(TERMS), device=device),
    )


def build_optimizer(optim: OptimSpec, student: Student, projectors: Sequence[nn.Module]) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999); biases and norms are not decayed."""
    parameters = [*student.trainable().values(), *(p for module in projectors for p in module.parameters())]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=optim.lr, fused=True)
