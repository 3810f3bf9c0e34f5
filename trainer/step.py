"""One optimizer step: micro-batches, gradients, clipping, schedules."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.batches import Batch, Example, collate
from trainer.config import LossSpec, TrialSpec
from trainer.errors import MemoryExhaustedError
from trainer.losses import Blend, geodesic, hidden_mse
from trainer.material import Material
from trainer.runtime import Runtime, seed_step
from trainer.schedules import scale_kl, scale_learning_rate
from trainer.state import TrainState
from trainer.students import StudentOutputs
from trainer.teacher import TeacherOutputs, TeacherSource, needs_of
from trainer.token_terms import Target, sum_token_terms


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
    if state.taid:
        state.taid.set_share(fraction)
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
    clip_gradients(state, spec.optim.clip_norm)
    scale = state.scaler.get_scale()  # GPU synchronisation, with fp16 only; so is the next one
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.steps += 1
    state.examples += len(examples)
    if state.scaler.get_scale() >= scale:
        state.scheduled_examples += len(examples)
        if state.taid:
            # Cross-entropy between target and student: their KL, without its temperature², and the target's entropy.
            state.taid.adapt_share(terms[2] / spec.loss.temperature**2 + terms[5])
    state.sums += terms
    state.num_summed += 1


def clip_gradients(state: TrainState, clip_norm: float) -> None:
    """Clip the student's gradient and each projector's, every one to its own norm.

    Apart: under a frozen encoder the geodesic term reaches only its projector and must not throttle the student.
    """
    torch.nn.utils.clip_grad_norm_(state.student.trainable().values(), clip_norm)
    for projector in state.projectors:
        torch.nn.utils.clip_grad_norm_(projector.parameters(), clip_norm)


def accumulate_gradients(
    state: TrainState,
    batches: Sequence[Batch],
    teacher: TeacherSource,
    *,
    loss: LossSpec,
    kl_weight: float,
    runtime: Runtime,
) -> Float[Tensor, "6"]:
    """Add up the gradient of the whole batch's mean loss; return the loss and its terms, see ``state.TERMS``.

    ``batches`` are on the CPU. Their tokens and frames are counted there, before anything runs: each micro-batch's
    sums are divided by the whole batch's counts, once, so the gradient is the same however the batch is split.
    """
    num_tokens = sum(int(batch.token_mask.sum()) for batch in batches)
    num_frames = sum(int(batch.frame_mask.sum()) for batch in batches)
    num_points = {"encoder": num_frames, "decoder": num_tokens}
    counts = torch.tensor(
        [num_tokens, num_tokens, num_points[loss.geo_states], num_points[loss.hidden_states], num_tokens],
        device=runtime.device,
    )
    weights = torch.tensor([1.0, kl_weight, loss.geo_weight, loss.hidden_weight, 0.0], device=runtime.device)
    means = torch.zeros(5, device=runtime.device)
    needs = needs_of(loss)
    for batch in batches:
        placed = batch.to(runtime.device)
        said = teacher.outputs(placed, needs)
        with runtime.autocast():
            outputs = state.student(placed)
            sums = sum_terms(state, outputs, said, placed, loss)
        part = sums / counts
        state.scaler.scale((part * weights).sum()).backward()
        means += part.detach()
    return torch.cat([(means * weights).sum()[None], means])


def sum_terms(
    state: TrainState, outputs: StudentOutputs, said: TeacherOutputs, batch: Batch, loss: LossSpec
) -> Float[Tensor, "5"]:
    """Return the sums of the loss's terms over one micro-batch, in the order of ``state.TERMS``; 0 if not trained."""
    target = None
    if loss.kl_weight > 0:
        assert said.decoder_states is not None and said.head is not None
        towards = Blend(share=state.taid.share, space=state.taid.spec.space) if state.taid else None
        target = Target(states=said.decoder_states, head=said.head, temperature=loss.temperature, towards=towards)
    hard, soft, entropy = sum_token_terms(outputs.decoder_states, outputs.head, batch.labels, target)
    angle = squared = torch.zeros_like(hard)
    compared = {
        "encoder": (outputs.encoder_states, said.encoder_states, batch.frame_mask),
        "decoder": (outputs.decoder_states, said.decoder_states, batch.token_mask),
    }
    if state.projector is not None:
        states, targets, mask = compared[loss.geo_states]
        assert targets is not None
        angle, _ = geodesic(state.projector(states), targets, mask)
    if state.hidden_projector is not None:
        states, targets, mask = compared[loss.hidden_states]
        assert targets is not None
        squared, _ = hidden_mse(state.hidden_projector(states), targets, mask)
    return torch.stack([hard, soft, angle, squared, entropy])
