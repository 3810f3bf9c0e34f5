"""What changes over a run, as pure functions of the fraction of its budget that is spent.

Fractions, not steps: the batch size is searched, so two trials of equal budget differ in their number of steps.
"""

import math


def scale_learning_rate(fraction: float, *, warmup_fraction: float) -> float:
    """Return the factor on the peak learning rate: linear from 0, then half a cosine down to 0 at the end."""
    if fraction < warmup_fraction:
        return fraction / warmup_fraction
    if fraction >= 1.0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (fraction - warmup_fraction) / (1.0 - warmup_fraction)))


def scale_kl(fraction: float, *, warmup_fraction: float) -> float:
    """Return the factor on ``kl_weight``: linear from 0 to 1 over the warm-up, then 1."""
    return fraction / warmup_fraction if fraction < warmup_fraction else 1.0


def move_target(fraction: float, *, start: float, end: float) -> float:
    """Return the teacher's share in TAID's target: linear from ``start`` to ``end``."""
    return start + (end - start) * fraction
