"""Everything that affects a run's next step, and how it is built."""

from dataclasses import dataclass, field

import torch

from trainer.config import OptimSpec, TrialSpec
from trainer.errors import BadInputError
from trainer.events import Evaluated, HistoryRow
from trainer.material import Material
from trainer.students import RiemannianProjector, Student, build_projector, build_student

TERMS = ("loss", "cross_entropy", "kl", "geodesic")


@dataclass(kw_only=True)
class TrainState:
    """Where a run stands. No random state is in it: a step's randomness follows from the seed and ``examples``."""

    student: Student
    projector: RiemannianProjector | None
    """None where no geodesic term is trained."""
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
    width = int(student.whisper.config.d_model)
    projector = (
        build_projector(width, material.teacher_width, spec.seed).to(device) if spec.loss.geo_weight > 0 else None
    )
    return TrainState(
        student=student,
        projector=projector,
        optimizer=build_optimizer(spec.optim, student, projector),
        scaler=material.runtime.make_scaler(),
        sums=torch.zeros(len(TERMS), device=device),
    )


def build_optimizer(optim: OptimSpec, student: Student, projector: RiemannianProjector | None) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999); biases and norms are not decayed."""
    parameters = [*student.trainable().values(), *(projector.parameters() if projector else ())]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=optim.lr, fused=True)
