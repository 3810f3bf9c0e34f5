"""The terms of the loss against hand-worked and float64 values; the schedules at their corners."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from trainer.losses import IGNORED, Blend, cross_entropy, geodesic, hidden_mse, kl_to_teacher
from trainer.schedules import scale_kl, scale_learning_rate


def logits(seed: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows(seed: int, *, tokens: int = 10, vocab: int = 11) -> torch.Tensor:
    return 3.0 * torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed))


def towards(share: float, space: Literal["logit", "prob"]) -> Blend:
    return Blend(share=torch.tensor(share, dtype=torch.float64), space=space)


def gradient_of_kl(
    student: torch.Tensor, teacher: torch.Tensor, *, temperature: float = 2.0, target: Blend | None = None
) -> torch.Tensor:
    student = student.clone().requires_grad_()
    total, _ = kl_to_teacher(student, teacher, temperature=temperature, towards=target)
    (gradient,) = torch.autograd.grad(total, student)
    return gradient


ALL = torch.ones(2, 5, dtype=torch.bool)


def test_kl_of_equal_distributions_is_zero() -> None:
    total, entropy = kl_to_teacher(rows(0), rows(0), temperature=2.0)
    assert total.item() == pytest.approx(0.0, abs=1e-6)
    assert entropy.item() == 0.0


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kl_equals_a_float64_reference_times_temperature_squared(temperature: float) -> None:
    total, _ = kl_to_teacher(rows(1), rows(2), temperature=temperature)
    p = F.softmax(rows(2).double() / temperature, dim=-1)
    q = F.softmax(rows(1).double() / temperature, dim=-1)
    assert total.item() == pytest.approx((p * (p / q).log()).sum().item() * temperature**2, rel=1e-5)


def test_kl_of_two_coins_is_the_hand_worked_value() -> None:
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    total, _ = kl_to_teacher(student, teacher, temperature=1.0)
    assert total.item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("space", ["logit", "prob"])
def test_taid_equals_a_float64_reference(space: Literal["logit", "prob"], share: float, temperature: float) -> None:
    total, entropy = kl_to_teacher(rows(1), rows(2), temperature=temperature, towards=towards(share, space))
    s, t = rows(1).double(), rows(2).double()
    q = F.softmax(s / temperature, dim=-1)
    if space == "logit":
        p = F.softmax(((1 - share) * s + share * t) / temperature, dim=-1)
    else:
        p = (1 - share) * q + share * F.softmax(t / temperature, dim=-1)
    expected = (p * (p.log() - q.log())).sum().item() * temperature**2
    assert total.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert entropy.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    gradient = gradient_of_kl(rows(1), rows(2), temperature=temperature, target=towards(share, space))
    torch.testing.assert_close(gradient.double(), temperature * (q - p), rtol=1e-4, atol=1e-6)


def test_taid_of_two_coins_is_the_hand_worked_value() -> None:
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    # Half way in logits: sqrt(0.9 · 0.5) against sqrt(0.1 · 0.5), which is 3 to 1. Half way in probability: 0.7 to 0.3.
    for space, p in (("logit", 0.75), ("prob", 0.7)):
        total, _ = kl_to_teacher(student, teacher, temperature=1.0, towards=towards(0.5, space))  # type: ignore[arg-type]
        expected = p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1)
        assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_taid_in_probability_space_has_exactly_share_times_the_gradient_of_the_kl(share: float) -> None:
    student, teacher = rows(3).double(), rows(4).double()
    whole = gradient_of_kl(student, teacher)
    torch.testing.assert_close(
        gradient_of_kl(student, teacher, target=towards(share, "prob")), share * whole, rtol=0.0, atol=1e-14
    )
    in_logits = gradient_of_kl(student, teacher, target=towards(share, "logit"))
    assert (in_logits - share * whole).norm() > 0.05 * whole.norm()


def test_cross_entropy_looks_at_labelled_positions_only() -> None:
    labels = torch.tensor([[3, IGNORED, IGNORED, 1, IGNORED], [IGNORED] * 5])
    total, count = cross_entropy(logits(3), labels)
    expected = -logits(3)[0, [0, 3]].double().log_softmax(-1)[[0, 1], [3, 1]].sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert count.item() == 2


def test_hidden_error_of_a_hand_worked_example_leaves_masked_positions_out() -> None:
    student = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]]], requires_grad=True)
    teacher = torch.tensor([[[0.0, 0.0], [3.0, 1.0], [0.0, 0.0]]])
    total, count = hidden_mse(student, teacher, torch.tensor([[True, True, False]]))
    total.backward()
    assert total.item() == pytest.approx((1 + 4) / 2 + (9 + 1) / 2)
    assert count.item() == 2
    assert student.grad is not None
    assert student.grad.tolist() == [[[1.0, 2.0], [-3.0, -1.0], [0.0, 0.0]]]


@pytest.mark.parametrize("angle", [1e-4, 1e-2, 1.0, math.pi / 2, math.pi - 1e-3])
def test_geodesic_is_the_angle_and_its_gradient_has_unit_length(angle: float) -> None:
    teacher = torch.tensor([[[1.0, 0.0, 0.0]]])
    student = torch.tensor([[[math.cos(angle), math.sin(angle), 0.0]]], requires_grad=True)
    total, _ = geodesic(student, teacher, torch.ones(1, 1, dtype=torch.bool))
    total.backward()
    assert total.item() == pytest.approx(angle, rel=2e-3)
    assert student.grad is not None
    assert student.grad.norm().item() == pytest.approx(1.0, rel=2e-2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_geodesic_gradient_is_finite_at_equal_and_at_opposite_points(sign: float) -> None:
    teacher = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(4))
    student = (sign * teacher).clone().requires_grad_()
    total, _ = geodesic(student, teacher, ALL)
    total.backward()
    assert total.item() == pytest.approx(0.0 if sign > 0 else 10 * math.pi, abs=1e-2)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["cross_entropy", "kl", "taid", "geodesic", "hidden"])
def test_every_loss_of_any_precision_is_finite_and_float32_accurate_even_under_autocast(
    name: str, dtype: torch.dtype
) -> None:
    """Against float64 on the same, rounded inputs; a Whisper's vocabulary and widths. Relative tolerance 1e-5."""
    is_wide = name in {"geodesic", "hidden"}
    student, teacher = (rows(seed, tokens=4, vocab=1280 if is_wide else 51_865).to(dtype) for seed in (5, 6))

    def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        everywhere = torch.ones(1, 4, dtype=torch.bool)
        if name == "cross_entropy":
            return cross_entropy(first, torch.tensor([1, 2, 3, 4]))[0]
        if name in {"kl", "taid"}:
            target = towards(0.3, "logit") if name == "taid" else None
            return kl_to_teacher(first, second, temperature=2.0, towards=target)[0]
        return (geodesic if name == "geodesic" else hidden_mse)(first[None], second[None], everywhere)[0]

    leaf = student.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(leaf, teacher)
    total.backward()
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(loss(student.double(), teacher.double()).item(), rel=1e-5)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("term", [geodesic, hidden_mse])
def test_masked_positions_change_no_loss_over_states(term: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    mask = torch.tensor([[True, True, False, False, True], [True, False, False, False, False]])
    student = torch.where(mask[..., None], logits(7), 1e4)
    assert torch.equal(term(student, logits(8), mask)[0], term(logits(7), logits(8), mask)[0])


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    values = [scale_learning_rate(f, warmup_fraction=0.1) for f in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert values == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


def test_without_warmup_both_schedules_start_at_their_peak() -> None:
    assert scale_learning_rate(0.0, warmup_fraction=0.0) == 1.0
    assert scale_kl(0.0, warmup_fraction=0.0) == 1.0


def test_warmup_over_the_whole_run_ends_at_zero_only_past_the_end() -> None:
    assert scale_learning_rate(0.99, warmup_fraction=1.0) == pytest.approx(0.99)
    assert scale_kl(0.5, warmup_fraction=1.0) == pytest.approx(0.5)
    assert scale_kl(1.0, warmup_fraction=1.0) == 1.0
