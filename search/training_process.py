"""The process that holds the GPU: receives trials over its channel, runs ``trainer``, sends events back.

It knows no database and no password. It stays warm from trial to trial and ends with its worker: by the
parent-death signal, and by the end of the stream on its channel.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from search.messages import Channel, Checked, Failed, Finished, Judged, Preflight, Reported, Stopped, Train
from storage.runs import AttemptFolder
from trainer.errors import BadInputError, DivergedError, MemoryExhaustedError, StoppedError
from trainer.events import Evaluated, RunEvent, Verdict
from trainer.session import Session

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Serve the channel whose file descriptor is the first argument, until it ends."""
    parent = int(argv[2])
    _die_with(parent)
    # Ctrl-C and SIGTERM reach the whole process group; what to do about them is the worker's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    descriptor = int(argv[1])
    os.set_inheritable(descriptor, False)  # a process of ours that outlived us would keep our end open
    channel = Channel(socket.socket(fileno=descriptor))
    # The end of the stream, or a broken pipe: our worker is gone, and so are we.
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(channel, Session())


def serve(channel: Channel, session: Session) -> None:
    """Answer commands until the channel ends.

    Raises:
        EOFError, OSError: the worker is gone.
    """
    while True:
        match channel.receive(None):
            case Train() as command:
                channel.send(_train(command, channel, session))
            case Preflight() as command:
                channel.send(_preflight(command, session))
            case _:
                continue  # a verdict that crossed the end of its trial


def _train(command: Train, channel: Channel, session: Session) -> Finished | Stopped | Failed:
    folder = AttemptFolder(Path(command.trial_path), command.attempt)
    try:
        result = session.train(command.spec, folder, _Reporter(command, channel), folder)
    except StoppedError as exc:
        return Stopped(examples=exc.examples)
    except DivergedError as exc:
        return Failed(cause="diverged", reason=str(exc), examples=exc.examples)
    except BadInputError as exc:
        return Failed(cause="bad_input", reason=str(exc))
    except MemoryExhaustedError as exc:
        return Failed(cause="out_of_memory", reason=str(exc))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as exc:
        # Whatever else a run can raise, from CUDA to a full disk: the worker decides, and keeps the traceback.
        traceback.print_exc()
        return Failed(cause="error", reason=f"{type(exc).__name__}: {exc}")
    return Finished(result=result)


def _preflight(command: Preflight, session: Session) -> Checked | Failed:
    try:
        return Checked(result=session.preflight(command.spec, _keep_going))
    except BadInputError as exc:
        return Failed(cause="bad_input", reason=str(exc))
    except Exception as exc:
        traceback.print_exc()
        return Failed(cause="error", reason=f"{type(exc).__name__}: {exc}")


def _keep_going(event: RunEvent | None) -> Verdict:
    """The preflight's verdict: a worker that wants its process back kills it, for there is nothing to save."""
    return "go_on"


class _Reporter:
    """Sends a run's events to the worker, and hands its verdicts to the run."""

    def __init__(self, command: Train, channel: Channel) -> None:
        self._command = command
        self._channel = channel

    def __call__(self, event: RunEvent | None) -> Verdict:
        if event is not None:
            self._channel.send(Reported(event=event))
        return self._receive(wait=isinstance(event, Evaluated))

    def _receive(self, *, wait: bool) -> Verdict:
        """Return the next verdict on this attempt; without ``wait``, only one that is there already."""
        while (message := self._channel.receive(None if wait else 0.0)) is not None:
            if isinstance(message, Judged) and (message.number, message.attempt) == (
                self._command.number,
                self._command.attempt,
            ):
                return message.verdict
        return "go_on"


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when the thread that started it ends (Linux only; harmless elsewhere)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv)
