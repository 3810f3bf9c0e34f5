"""What a run leaves for people to read: its configuration, its history, TensorBoard scalars."""

from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from trainer.config import TrialSpec
from trainer.events import Evaluated, HistoryRow, RunLog


class Journal:
    """One attempt's record. A context manager: TensorBoard writes from a thread that must be ended."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._scalars = SummaryWriter(str(log.folder / "tb"))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scalars.close()

    def write_config(self, spec: TrialSpec, **facts: object) -> None:
        """Write the resolved configuration and what the machine made of it."""
        self._log.write_json("training_config.json", {"trial": spec.model_dump(mode="json"), **facts})

    def write_history(self, history: list[HistoryRow], evaluations: list[Evaluated]) -> None:
        """Write all rows so far; over those of the file before, so that the file is always whole."""
        self._log.write_json(
            "training_history.json",
            {
                "training": [row.model_dump(mode="json") for row in history],
                "evaluations": [
                    {"examples": event.examples, **event.metrics.model_dump(mode="json")} for event in evaluations
                ],
            },
        )

    def add_row(self, row: HistoryRow) -> None:
        """Show one row of the history in TensorBoard, by examples seen."""
        for name, value in row.model_dump(exclude={"examples", "steps"}).items():
            if value is not None:
                self._scalars.add_scalar(f"train/{name}", value, row.examples)

    def add_evaluation(self, event: Evaluated) -> None:
        """Show one evaluation in TensorBoard, by examples seen."""
        for name in ("wer", "cross_entropy", "kl", "rtf"):
            value = getattr(event.metrics, name)
            if value is not None:
                self._scalars.add_scalar(f"dev/{name}", value, event.examples)
        self._scalars.flush()
