"""What a data directory remembers about its servers: ports, passwords, and where the data are."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from podium.servers.errors import ServersError

FILE = "servers.json"
PASSWORD_BYTES = 24


@dataclass
class Remembered:
    """Of one server. Without its password the data could not be opened again."""

    password: str = field(default_factory=lambda: secrets.token_hex(PASSWORD_BYTES))
    ports: dict[str, int] = field(default_factory=dict)


@dataclass
class Memory:
    """The contents of `DIR/servers.json`, readable by its owner alone."""

    data_dir: Path
    place: str | None = None
    """The folder of the servers' data once it was chosen, relative to the data directory, which may be moved."""
    servers: dict[str, Remembered] = field(default_factory=dict)

    def of(self, server: str) -> Remembered:
        """What is remembered of `server`; new, with a random password, the first time."""
        return self.servers.setdefault(server, Remembered())

    def save(self) -> None:
        """Written whole or not at all."""
        contents = {
            "place": self.place,
            "servers": {name: asdict(server) for name, server in self.servers.items()},
        }
        fresh = self.data_dir / f"{FILE}.new"
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(contents, file, indent=2)
        fresh.replace(self.data_dir / FILE)


def recall(data_dir: Path) -> Memory:
    """What `data_dir` remembers; nothing, for a new one.

    Raises:
        ServersError: the file is damaged.
    """
    path = data_dir / FILE
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        place = contents["place"]
        servers = {name: Remembered(**server) for name, server in contents["servers"].items()}
    except FileNotFoundError:
        return Memory(data_dir)
    except (ValueError, KeyError, TypeError) as error:
        raise ServersError(f"{path} is damaged ({error}); it holds the passwords of the data beside it.") from error
    return Memory(data_dir, place, servers)
