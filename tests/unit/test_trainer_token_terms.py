"""Cross-entropy and KL from hidden states, chunk by chunk: as if all logits had been there at once."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from trainer.losses import IGNORED, Blend, cross_entropy, kl_to_teacher
from trainer.token_terms import Target, sum_token_terms

VOCAB, WIDTH, TEACHER_WIDTH = 23, 8, 12
LABELS = torch.tensor([[IGNORED, 3, 1, 22, 0, IGNORED], [IGNORED, 7, 5, IGNORED, IGNORED, IGNORED]])
WEIGHTS = torch.tensor([1.0, 0.7, 0.0])


def states(seed: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 6, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def head(seed: int, width: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    layer = nn.Linear(width, VOCAB, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(VOCAB, width, generator=torch.Generator().manual_seed(seed)))
    return layer.to(dtype)


def target(dtype: torch.dtype = torch.float32, *, share: float | None = 0.3) -> Target:
    towards = Blend(share=torch.tensor(share, dtype=torch.float64), space="logit") if share is not None else None
    return Target(
        states=states(2, TEACHER_WIDTH, dtype), head=head(3, TEACHER_WIDTH, dtype), temperature=2.0, towards=towards
    )


def gradients(
    chunk_tokens: int | None, aim: Target | None, dtype: torch.dtype = torch.float32, *, trains_head: bool = True
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return sums, and gradients of states, a layer before them, and the head, which that layer is tied to."""
    inner, layer = states(0, VOCAB, dtype).requires_grad_(), head(1, WIDTH, dtype)
    layer.weight.requires_grad_(trains_head)
    sums = sum_token_terms((inner @ layer.weight).tanh(), layer, LABELS, aim, chunk_tokens=chunk_tokens)
    (sums * WEIGHTS.to(dtype)).sum().backward()
    assert inner.grad is not None
    return sums, [inner.grad, *([layer.weight.grad] if layer.weight.grad is not None else [])]


@pytest.mark.parametrize("share", [None, 0.3])
def test_sums_equal_those_of_all_logits_at_once(share: float | None) -> None:
    aim, layer, student = target(share=share), head(1, WIDTH), states(0, WIDTH)
    sums = sum_token_terms(student, layer, LABELS, aim, chunk_tokens=2)
    mask = LABELS != IGNORED
    hard, _ = cross_entropy(layer(student), LABELS)
    soft, entropy = kl_to_teacher(
        layer(student)[mask], aim.head(aim.states)[mask], temperature=2.0, towards=aim.towards
    )
    torch.testing.assert_close(sums, torch.stack([hard, soft, entropy]))


def test_without_a_target_only_the_transcript_counts() -> None:
    sums = sum_token_terms(states(0, WIDTH), head(1, WIDTH), LABELS, None)
    assert sums[0] > 0
    assert sums[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk_tokens", [1, 2, 4, 5])
@pytest.mark.parametrize("trains_head", [True, False])
def test_gradients_do_not_depend_on_the_chunks(
    trains_head: bool, chunk_tokens: int, dtype: torch.dtype, tolerance: float
) -> None:
    for aim in (None, target(dtype), target(dtype, share=None)):
        whole_sums, whole = gradients(100, aim, dtype, trains_head=trains_head)
        sums, parts = gradients(chunk_tokens, aim, dtype, trains_head=trains_head)
        assert len(parts) == len(whole) == 1 + trains_head
        torch.testing.assert_close(sums, whole_sums, rtol=tolerance, atol=tolerance)
        for one, other in zip(parts, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("chunk_tokens", [2, 100])
def test_under_autocast_sums_and_gradients_are_close_to_float64(
    dtype: torch.dtype, tolerance: float, chunk_tokens: int
) -> None:
    """Logits are rounded there, losses are not. Tolerance relative to the largest of each tensor."""
    half = replace(target(), states=target().states.to(dtype))
    with torch.autocast("cpu", dtype=dtype):
        sums, found = gradients(chunk_tokens, half)
    exact_sums, exact = gradients(100, target(torch.float64), torch.float64)
    assert sums.dtype == torch.float32
    for one, other in zip([sums, *found], [exact_sums, *exact], strict=True):
        assert (one.double() - other).abs().max() < tolerance * other.abs().max()


def test_padding_and_prompt_change_nothing() -> None:
    student, aim = states(0, WIDTH), target()
    garbage = torch.where((LABELS == IGNORED)[..., None], 1e4, student)
    longer = torch.cat([garbage, torch.full((2, 3, WIDTH), torch.nan)], dim=1)
    labels = torch.cat([LABELS, torch.full((2, 3), IGNORED)], dim=1)
    padded = replace(aim, states=torch.cat([aim.states, torch.full((2, 3, TEACHER_WIDTH), torch.nan)], dim=1))
    for chunk_tokens in (None, 2):
        sums = sum_token_terms(student, head(1, WIDTH), LABELS, aim, chunk_tokens=chunk_tokens)
        assert torch.equal(sum_token_terms(longer, head(1, WIDTH), labels, padded, chunk_tokens=chunk_tokens), sums)


def test_logits_exist_for_a_chunk_at_a_time_and_are_let_go_before_the_backward_pass() -> None:
    sizes: list[int] = []
    layer = head(1, WIDTH)
    layer.register_forward_hook(lambda _module, _inputs, made: sizes.append(made.shape[0]))
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums = sum_token_terms(states(0, WIDTH).requires_grad_(), layer, LABELS, target(), chunk_tokens=4)
    assert sizes == [4, 2]
    assert not any(VOCAB in shape and shape != layer.weight.shape for shape in kept)
    sums.sum().backward()
    assert sizes == [4, 2, 2, 4]
    sizes.clear()
    with torch.no_grad():
        sum_token_terms(states(0, WIDTH), layer, LABELS, target(), chunk_tokens=4)
    assert sizes == [4, 2]


def test_a_graph_of_chunks_can_be_walked_term_by_term() -> None:
    inner = states(0, WIDTH).requires_grad_()
    sums = sum_token_terms(inner, head(1, WIDTH), LABELS, target(), chunk_tokens=2)
    (hard,) = torch.autograd.grad(sums[0], inner, retain_graph=True)
    (soft,) = torch.autograd.grad(sums[1], inner, retain_graph=True)
    (both,) = torch.autograd.grad(sums[0] + sums[1], inner)
    torch.testing.assert_close(hard + soft, both)


def test_a_batch_without_labels_sums_to_zero() -> None:
    empty = torch.full_like(LABELS, IGNORED)
    assert sum_token_terms(states(0, WIDTH), head(1, WIDTH), empty, target()).tolist() == [0.0, 0.0, 0.0]
