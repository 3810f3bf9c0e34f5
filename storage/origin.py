"""Where an embedded server was started: enough to tell whether one that was never stopped can still be alive."""

import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from storage.errors import EmbeddedServerError
from storage.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The machine, its boot and the PID namespace (the container) of a server, and the folder of its socket."""

    host: str
    boot_id: str
    pid_namespace: str
    socket_folder: str

    @classmethod
    def here(cls, socket_folder: Path) -> Self:
        """This machine and process."""
        boot_id, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
        return cls(
            host=socket.gethostname(),
            boot_id=boot_id.read_text().strip() if boot_id.exists() else "unknown",
            pid_namespace=str(namespace.readlink()) if namespace.exists() else "unknown",
            socket_folder=str(socket_folder),
        )

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What ``save`` wrote, or ``None`` where there is no such file.

        Raises:
            EmbeddedServerError: the file is not one of ours.
        """
        try:
            return cls(**read_json(path))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as exc:
            raise EmbeddedServerError(f"{path} is damaged ({exc}); delete it if no server runs on this folder") from exc

    def save(self, path: Path) -> None:
        """Write it to ``path``, atomically."""
        write_json(path, asdict(self))

    def may_live_elsewhere(self) -> bool:
        """Whether the server could be alive although its lock is free here: another machine, over a network folder.

        On the same boot the kernel would show the lock, whatever the container; and a machine that has been restarted
        has left no process.
        """
        here = self.here(Path(self.socket_folder))
        return here.boot_id != self.boot_id and here.host != self.host

    def is_in_sight(self) -> bool:
        """Whether a live server of this origin is one that we can reach and stop."""
        here = self.here(Path(self.socket_folder))
        return (here.boot_id, here.pid_namespace) == (self.boot_id, self.pid_namespace)
