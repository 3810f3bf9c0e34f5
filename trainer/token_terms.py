"""Cross-entropy and KL straight from hidden states: logits exist for a chunk of the tokens at a time.

A Whisper's vocabulary has 51,865 entries, so 32 transcripts of 64 tokens make 425 MB of logits in float32, for either
model, and a loss holds several copies of them until its backward pass. Here a chunk's logits are computed, reduced to
three numbers and let go, and computed again when their gradient is asked for: one more product with the output layer,
for memory that does not grow with the batch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.losses import IGNORED, Blend, cross_entropy, kl_to_teacher

CHUNK_LOGITS = 2**24
"""How many logits of one model exist at a time: 64 MiB in float32, 323 tokens of a Whisper's vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the KL pulls the student to."""

    states: Float[Tensor, "batch tokens teacher_width"]
    """The teacher's last decoder states."""
    head: nn.Linear
    """The teacher's output layer."""
    temperature: float
    towards: Blend | None = None


def sum_token_terms(
    states: Float[Tensor, "batch tokens width"],
    head: nn.Linear,
    labels: Int[Tensor, "batch tokens"],
    target: Target | None,
    *,
    chunk_tokens: int | None = None,
) -> Float[Tensor, "3"]:
    """Return the sums of cross-entropy, KL and the target's entropy over the labelled tokens; 0 without a target.

    ``head`` may be tied to the embedding, trained or frozen. Logits are computed in autocast's precision where it is
    on, the losses in float32. ``chunk_tokens`` is how many tokens' logits exist at a time, by default as many as
    ``CHUNK_LOGITS`` allows; all tokens in one chunk are not computed twice.
    """
    # Only labelled tokens: prompt and padding can be most of a batch. GPU synchronisation: how many are there?
    chosen = (labels != IGNORED).flatten().nonzero().squeeze(1)
    size = chunk_tokens or max(1, CHUNK_LOGITS // head.out_features)
    students, rows = states.flatten(0, 1)[chosen].split(size), labels.flatten()[chosen].split(size)
    teachers = target.states.flatten(0, 1)[chosen].split(size) if target else [None] * len(rows)
    is_kept = len(rows) == 1 or not torch.is_grad_enabled()
    parts = []
    for inputs in zip(students, rows, teachers, strict=True):
        if is_kept:
            parts.append(_sum_chunk(*inputs, head, target))
        else:
            parts.append(checkpoint(_sum_chunk, *inputs, head, target, use_reentrant=False, preserve_rng_state=False))
    return torch.stack(parts).sum(0)


def _sum_chunk(
    states: Float[Tensor, "points width"],
    labels: Int[Tensor, "points"],
    teacher_states: Float[Tensor, "points teacher_width"] | None,
    head: nn.Linear,
    target: Target | None,
) -> Float[Tensor, "3"]:
    logits = head(states)
    hard, _ = cross_entropy(logits, labels)
    if target is None or teacher_states is None:
        return torch.stack([hard, torch.zeros_like(hard), torch.zeros_like(hard)])
    with torch.no_grad():
        teacher_logits = target.head(teacher_states.to(target.head.weight.dtype))
    soft, entropy = kl_to_teacher(logits, teacher_logits, temperature=target.temperature, towards=target.towards)
    return torch.stack([hard, soft, entropy])
