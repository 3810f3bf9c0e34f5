"""TAID's schedules: against the published update, written out in plain numbers."""

import math

import pytest
import torch
from pydantic import ValidationError

from trainer.config import LossSpec, TaidSpec
from trainer.schedules import move_target
from trainer.taid import Taid

LOSSES = [9.0, 8.5, 8.6, 4.0, 4.1, 2.0, 2.0, 1.9]


def walk(spec: TaidSpec, losses: list[float]) -> list[float]:
    """Return the share of every step."""
    taid, shares = Taid(spec, torch.device("cpu")), []
    for step, loss in enumerate(losses):
        taid.set_share((step + 0.5) / len(losses))
        shares.append(taid.share.item())
        taid.adapt_share(torch.tensor(loss))
    return shares


def test_the_linear_schedule_goes_from_start_to_end_whatever_the_loss_does() -> None:
    spec = TaidSpec(start=0.2, end=0.6)
    assert [move_target(fraction, start=0.2, end=0.6) for fraction in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.4, 0.6])
    assert walk(spec, [1.0, 5.0]) == walk(spec, [5.0, 1.0]) == pytest.approx([0.3, 0.5])


@pytest.mark.parametrize("alpha", [5e-4, 0.5])
def test_the_adaptive_schedule_follows_the_published_update(alpha: float) -> None:
    spec = TaidSpec(schedule="adaptive", start=0.1, end=0.9, alpha=alpha, beta=0.9)
    share, momentum, previous, expected = 0.1, 0.0, math.inf, []
    for step, loss in enumerate(LOSSES):
        share = max(share, 0.1 + 0.8 * (step + 0.5) / len(LOSSES))
        expected.append(share)
        if math.isfinite(previous):
            momentum = 0.9 * momentum + 0.1 * (previous - loss) / (previous + 1e-15)
            share = min(0.9, share + alpha / (1 + math.exp(-momentum)) * (1 - share))
        previous = loss
    assert walk(spec, LOSSES) == pytest.approx(expected, rel=1e-6)


def test_the_adaptive_schedule_never_falls_is_never_behind_the_linear_one_and_stops_at_its_end() -> None:
    adaptive = walk(TaidSpec(schedule="adaptive", start=0.1, end=0.8, alpha=0.3), [*LOSSES, *LOSSES])
    linear = walk(TaidSpec(start=0.1, end=0.8), [*LOSSES, *LOSSES])
    assert adaptive == sorted(adaptive)
    assert all(one >= other for one, other in zip(adaptive, linear, strict=True))
    assert adaptive[-1] == 0.8


def test_a_state_goes_on_where_another_stopped() -> None:
    spec = TaidSpec(schedule="adaptive", alpha=0.1)
    first, second = Taid(spec, torch.device("cpu")), Taid(spec, torch.device("cpu"))
    for loss in LOSSES[:4]:
        first.adapt_share(torch.tensor(loss))
    second.load_state_dict(first.state_dict())
    for taid in (first, second):
        taid.adapt_share(torch.tensor(1.0))
    assert first.state_dict() == second.state_dict()


def test_a_target_that_moves_away_from_the_teacher_is_refused() -> None:
    assert LossSpec().taid is None
    with pytest.raises(ValidationError, match=r"loss.taid.start \(0.9\) must not be above loss.taid.end \(0.5\)"):
        TaidSpec(start=0.9, end=0.5)
