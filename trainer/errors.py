"""What the trainer raises on purpose: one leaf per decision that a caller makes."""


class TrainerError(Exception):
    """Base of what the trainer raises on purpose."""


class BadInputError(TrainerError):
    """Data, a model directory or a checkpoint is not what it must be. No retry helps; the study is refused.

    The message is one sentence that names the thing, the place and the remedy.
    """


class DivergedError(TrainerError):
    """The loss stopped being a finite number; the hyperparameters are to blame, so a retry is pointless."""

    def __init__(self, examples: int, value: float) -> None:
        super().__init__(
            f"the loss is {value} after {examples} examples; lower optim.lr or raise optim.warmup_fraction"
        )
        self.examples = examples
        self.value = value


class StoppedError(TrainerError):
    """The caller's verdict ended the run before its budget. ``examples`` is where it stood."""

    def __init__(self, examples: int) -> None:
        super().__init__(f"stopped after {examples} examples, as asked")
        self.examples = examples


class MemoryExhaustedError(TrainerError):
    """The device's memory does not hold the run, however small the micro-batch; a retry there is pointless."""
