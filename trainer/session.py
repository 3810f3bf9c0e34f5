"""What a training process keeps loaded from one trial to the next."""

from trainer.config import TrialSpec
from trainer.errors import StoppedError
from trainer.events import Checkpoints, Labelled, PreflightResult, Report, RunLog, TrialResult
from trainer.labels import Transcripts
from trainer.loop import train
from trainer.material import Material, key_of, load_material
from trainer.preflight import preflight


class Session:
    """Data and models, loaded by the first run that needs them and kept for those that need the same."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._material: Material | None = None
        self._transcripts: Transcripts = {}

    def prepare(self, spec: TrialSpec, report: Report | None = None) -> Material:
        """Load what a run needs, unless the run before needed the same; ``report`` hears of what takes long.

        Raises:
            BadInputError: Data or a model directory is not what it must be.
            StoppedError: The caller said so.
        """

        def tell(done: int, total: int) -> None:
            if report is not None and report(Labelled(utterances=done, total=total)) != "go_on":
                raise StoppedError(0)

        key = key_of(spec)
        if self._material is None or self._key != key:
            self._material = None  # let go of the old before loading the new: both may not fit into memory
            self._material = load_material(spec, self._transcripts, tell)
            self._key = key
        return self._material

    def train(self, spec: TrialSpec, checkpoints: Checkpoints, report: Report, log: RunLog) -> TrialResult:
        """Train one student; see ``trainer.loop.train``."""
        return train(spec, self.prepare(spec, report), checkpoints, report, log)

    def preflight(self, spec: TrialSpec, report: Report) -> PreflightResult:
        """Check what can be checked before the first trial; ``report`` is asked now and then whether to go on.

        Raises:
            BadInputError: Something is not what it must be.
            StoppedError: The caller said so.
        """

        def tick() -> None:
            if report(None) != "go_on":
                raise StoppedError(0)

        return preflight(spec, self.prepare(spec, report), tick)
