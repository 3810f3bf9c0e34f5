"""The terms of the loss against hand-worked and float64 values; the schedules at their corners."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.losses import IGNORED, cross_entropy, geodesic, kl_to_teacher
from trainer.schedules import scale_kl, scale_learning_rate


def logits(seed: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(seed)).to(dtype)


ALL = torch.ones(2, 5, dtype=torch.bool)


def test_kl_of_equal_distributions_is_zero() -> None:
    total, count = kl_to_teacher(logits(0), logits(0), ALL, temperature=2.0)
    assert total.item() == pytest.approx(0.0, abs=1e-6)
    assert count.item() == 10


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kl_equals_a_float64_reference_times_temperature_squared(temperature: float) -> None:
    mask = torch.tensor([[True, True, False, True, False], [True, False, False, False, False]])
    total, count = kl_to_teacher(logits(1), logits(2), mask, temperature=temperature)
    p = F.softmax(logits(2).double() / temperature, dim=-1)
    q = F.softmax(logits(1).double() / temperature, dim=-1)
    expected = ((p * (p / q).log()).sum(-1) * mask).sum() * temperature**2
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert count.item() == 4


def test_kl_of_two_coins_is_the_hand_worked_value() -> None:
    teacher, student = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.9, 0.1]]]).log()
    total, _ = kl_to_teacher(student, teacher, torch.ones(1, 1, dtype=torch.bool), temperature=1.0)
    assert total.item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-5)


def test_cross_entropy_looks_at_labelled_positions_only() -> None:
    labels = torch.tensor([[3, IGNORED, IGNORED, 1, IGNORED], [IGNORED] * 5])
    total, count = cross_entropy(logits(3), labels)
    expected = -logits(3)[0, [0, 3]].double().log_softmax(-1)[[0, 1], [3, 1]].sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert count.item() == 2


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


def test_losses_of_half_precision_inputs_are_computed_in_float32_even_under_autocast() -> None:
    half = logits(5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        soft, _ = kl_to_teacher(half, logits(6), ALL, temperature=2.0)
        hard, _ = cross_entropy(half, torch.ones(2, 5, dtype=torch.long))
        angle, _ = geodesic(half, logits(6), ALL)
    expected, _ = kl_to_teacher(half.float(), logits(6), ALL, temperature=2.0)
    assert (soft.dtype, hard.dtype, angle.dtype) == (torch.float32,) * 3
    assert soft.item() == expected.item()


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
