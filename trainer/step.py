"""One optimizer step: micro-batches, gradients, clipping, schedules."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.batches import Batch, Example, collate
from trainer.config import LossSpec, TrialSpec
from trainer.errors import MemoryExhaustedError
from trainer.losses import cross_entropy, geodesic, kl_to_teacher
from trainer.material import Material
from trainer.runtime import Runtime, seed_step
from trainer.schedules import scale_kl, scale_learning_rate
from trainer.state import TrainState
from trainer.students import RiemannianProjector, StudentOutputs
from trainer.teacher import TeacherOutputs, TeacherSource, needs_of


def take_step(spec: TrialSpec, material: Material, state: TrainState, examples: Sequence[Example]) -> None:
    """Take one optimizer step on one effective batch.

    Where the device's memory runs out, the micro-batch is halved, for this step and those after it.

    Raises:
        MemoryExhaustedError: Not even one example at a time fits.
    """
    # Mid-step: what a schedule gives on average while the step's examples are seen.
    fraction = (state.scheduled_examples + len(examples) / 2) / spec.optim.examples
    for group in state.optimizer.param_groups:
        group["lr"] = spec.optim.lr * scale_learning_rate(fraction, warmup_fraction=spec.optim.warmup_fraction)
    kl_weight = spec.loss.kl_weight * scale_kl(fraction, warmup_fraction=spec.loss.kl_warmup_fraction)
    micro_size = state.micro_batch_size or spec.optim.micro_batch_size or len(examples)
    terms: torch.Tensor | None = None
    while terms is None:
        seed_step(spec.seed, state.examples)
        state.optimizer.zero_grad(set_to_none=True)
        batches = [
            collate(examples[first : first + micro_size], material.vocabulary, pin_memory=material.runtime.is_cuda)
            for first in range(0, len(examples), micro_size)
        ]
        try:
            terms = accumulate_gradients(
                state, batches, material.teacher, loss=spec.loss, kl_weight=kl_weight, runtime=material.runtime
            )
        except torch.OutOfMemoryError as exc:
            if micro_size == 1:
                raise MemoryExhaustedError(
                    "one example at a time does not fit into the device's memory; choose a smaller student or teacher"
                ) from exc
            state.micro_batch_size = micro_size = -(-micro_size // 2)
        # Outside the except clause: its traceback kept the failed step's tensors alive.
        if terms is None and material.runtime.is_cuda:
            torch.cuda.empty_cache()
    state.scaler.unscale_(state.optimizer)
    # Apart: under a frozen encoder the geodesic term reaches only the projector and must not throttle the student.
    torch.nn.utils.clip_grad_norm_(state.student.trainable().values(), spec.optim.clip_norm)
    if state.projector:
        torch.nn.utils.clip_grad_norm_(state.projector.parameters(), spec.optim.clip_norm)
    scale = state.scaler.get_scale()  # GPU synchronisation, with fp16 only; so is the next one
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.steps += 1
    state.examples += len(examples)
    if state.scaler.get_scale() >= scale:
        state.scheduled_examples += len(examples)
    state.sums += terms
    state.num_summed += 1


def accumulate_gradients(
    state: TrainState,
    batches: Sequence[Batch],
    teacher: TeacherSource,
    *,
    loss: LossSpec,
    kl_weight: float,
    runtime: Runtime,
) -> Float[Tensor, "4"]:
    """Add up the gradient of the whole batch's mean loss; return loss, cross-entropy, KL and geodesic distance.

    ``batches`` are on the CPU. Their tokens and frames are counted there, before anything runs: each micro-batch's
    sums are divided by the whole batch's counts, once, so the gradient is the same however the batch is split.
    """
    num_tokens = sum(int(batch.token_mask.sum()) for batch in batches)
    is_over_frames = loss.geo_states == "encoder"
    num_points = sum(int((batch.frame_mask if is_over_frames else batch.token_mask).sum()) for batch in batches)
    counts = torch.tensor([num_tokens, num_tokens, num_points], device=runtime.device)
    weights = torch.tensor([1.0, kl_weight, loss.geo_weight], device=runtime.device)
    means = torch.zeros(3, device=runtime.device)
    needs = needs_of(loss)
    for batch in batches:
        placed = batch.to(runtime.device)
        said = teacher.outputs(placed, needs)
        with runtime.autocast():
            outputs = state.student(placed)
            sums = sum_terms(outputs, said, placed, state.projector, loss)
        part = sums / counts
        state.scaler.scale((part * weights).sum()).backward()
        means += part.detach()
    return torch.cat([(means * weights).sum()[None], means])


def sum_terms(
    outputs: StudentOutputs,
    said: TeacherOutputs,
    batch: Batch,
    projector: RiemannianProjector | None,
    loss: LossSpec,
) -> Float[Tensor, "3"]:
    """Return the sums of cross-entropy, KL and geodesic distance over one micro-batch, 0 for a term not trained."""
    hard, _ = cross_entropy(outputs.logits, batch.labels)
    soft = angle = torch.zeros_like(hard)
    if said.logits is not None:
        soft, _ = kl_to_teacher(outputs.logits, said.logits, batch.token_mask, temperature=loss.temperature)
    if projector is not None:
        if loss.geo_states == "encoder":
            states, targets, mask = outputs.encoder_states, said.encoder_states, batch.frame_mask
        else:
            states, targets, mask = outputs.decoder_states, said.decoder_states, batch.token_mask
        assert targets is not None
        angle, _ = geodesic(projector(states), targets, mask)
    return torch.stack([hard, soft, angle])
