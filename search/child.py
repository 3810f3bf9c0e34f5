"""The worker's handle on its training process: started when needed, kept warm, replaced when it dies."""

import os
import subprocess
import sys
import tempfile
import time

from search.messages import Channel, Down, Up, channel_pair

LOG_TAIL_BYTES = 4000


class ChildDiedError(Exception):
    """The training process is gone. ``log_tail`` is the end of what it printed."""

    def __init__(self, reason: str, log_tail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log_tail = log_tail


class TrainingChild:
    """One training process at a time. Its output goes to a nameless file, whose end is kept when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 closed with the process that owns it
        self.heard_at = time.monotonic()
        """When it last said something, or was last spoken to."""

    def send(self, message: Down) -> None:
        """Send a message, starting the process if there is none.

        Raises:
            ChildDiedError: it died; another call starts a new one.
        """
        if self._process is None:
            self._start()
        assert self._channel is not None
        self.heard_at = time.monotonic()
        try:
            self._channel.send(message)
        except OSError:
            raise self._bury() from None

    def receive(self, timeout_s: float) -> Up | None:
        """Return the next message, or None after ``timeout_s``.

        Raises:
            ChildDiedError: it died.
        """
        assert self._channel is not None
        try:
            message = self._channel.receive(timeout_s)
        except (EOFError, OSError):
            raise self._bury() from None
        if message is not None:
            self.heard_at = time.monotonic()
        return message  # type: ignore[return-value]  # the other end sends Up only

    def log_tail(self) -> str:
        """Return the end of what the process printed."""
        size = os.fstat(self._output.fileno()).st_size
        tail = os.pread(self._output.fileno(), LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES))
        return tail.decode(errors="replace")

    def kill(self) -> None:
        """End the process at once; nothing to do if there is none."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._forget()

    def close(self) -> None:
        """End the process by closing its channel, as it expects."""
        if self._process is None:
            return
        assert self._channel is not None
        self._channel.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._forget()

    def _start(self) -> None:
        ours, theirs = channel_pair()
        os.ftruncate(self._output.fileno(), 0)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "search.training_process", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=_without_secrets(),
        )
        theirs.close()
        self._channel = ours

    def _bury(self) -> ChildDiedError:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._forget()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ChildDiedError(f"its training process {how}", self.log_tail())

    def _forget(self) -> None:
        assert self._channel is not None
        self._channel.close()
        self._process = self._channel = None


def _without_secrets() -> dict[str, str]:
    """Return the environment for a process that has no business with the database."""
    secret = {"DISTUNE_STORAGE", "DISTUNE_PASSWORD_FILE", "PGPASSWORD", "PGPASSFILE"}
    return {name: value for name, value in os.environ.items() if name not in secret}
