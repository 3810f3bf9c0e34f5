"""What a worker and its training process say to each other: one JSON object a line, over a socket pair.

JSON, not pickle: whatever reaches the worker's side is data.
"""

import select
import socket
import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainer.config import TrialSpec
from trainer.events import PreflightResult, RunEvent, TrialResult, Verdict


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Train(Message):
    """Down: run this attempt."""

    kind: Literal["train"] = "train"
    number: int
    attempt: int
    trial_path: str
    """The trial's folder; the attempt's own folder is below it."""
    spec: TrialSpec


class Preflight(Message):
    """Down: check everything that needs data or a model."""

    kind: Literal["preflight"] = "preflight"
    spec: TrialSpec


class Judged(Message):
    """Down: what becomes of the attempt. Sent as an answer to an evaluation, or at any time."""

    kind: Literal["judged"] = "judged"
    number: int
    attempt: int
    verdict: Verdict


class Reported(Message):
    """Up: an event of the run."""

    kind: Literal["reported"] = "reported"
    event: RunEvent


class Finished(Message):
    """Up: the run reached its budget."""

    kind: Literal["finished"] = "finished"
    result: TrialResult


class Stopped(Message):
    """Up: the run ended early, as asked."""

    kind: Literal["stopped"] = "stopped"
    examples: int


class Failed(Message):
    """Up: the run, or the preflight, failed. ``error`` is anything that was not foreseen: another attempt may help."""

    kind: Literal["failed"] = "failed"
    cause: Literal["diverged", "bad_input", "out_of_memory", "error"]
    reason: str
    examples: int = 0


class Checked(Message):
    """Up: the preflight found nothing that forbids the study."""

    kind: Literal["checked"] = "checked"
    result: PreflightResult


Down = Train | Preflight | Judged
Up = Reported | Finished | Stopped | Failed | Checked

_ADAPTER: TypeAdapter[Down | Up] = TypeAdapter(Annotated[Down | Up, Field(discriminator="kind")])


class Channel:
    """One end of the socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = b""

    def send(self, message: Down | Up) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone (``BrokenPipeError``, ``ConnectionResetError``).
        """
        self._end.sendall(message.model_dump_json().encode() + b"\n")

    def receive(self, timeout_s: float | None) -> Down | Up | None:
        """Return the next message, or None after ``timeout_s``; None waits for ever.

        Raises:
            EOFError: the other side is gone.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._end], [], [], left)[0]:
                return None
            try:
                chunk = self._end.recv(1 << 16)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise EOFError("the other side of the channel is gone")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return _ADAPTER.validate_json(line)

    def fileno(self) -> int:
        """Return the file descriptor, to hand it to a child."""
        return self._end.fileno()

    def close(self) -> None:
        """Close this end; the other side sees the end of the stream."""
        self._end.close()


def channel_pair() -> tuple[Channel, Channel]:
    """Return the two ends of a new channel."""
    left, right = socket.socketpair()
    return Channel(left), Channel(right)
