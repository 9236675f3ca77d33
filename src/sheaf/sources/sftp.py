"""SFTP by paramiko: one connection; the server's key must be known before anything is said to it.

Known are the keys of ~/.ssh/known_hosts, or of the file that `options: {known_hosts: PATH}` names, or the one whose
fingerprint is `options: {host_key: "SHA256:…"}`. Log-in is by `password`, by `options: {key_file: PATH, passphrase:
{env: NAME}}`, or by the agent and keys of ~/.ssh. A folder with a name that is not UTF-8 is refused: the library cannot
tell such names. Cost: paramiko's thread for each connection; 64 requests are on their way at once.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Generator, Iterator
from pathlib import Path

from sheaf.errors import EnvironmentProblem, MissingExtra
from sheaf.sources.fileserver import Account, Denied, Entry, take_options
from sheaf.sources.retry import Unreachable

try:
    import paramiko
except ModuleNotFoundError as error:
    raise MissingExtra("sftp", "a source of sftp://") from error

TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 18
IN_FLIGHT = 64
OPTIONS = ("known_hosts", "host_key", "key_file", "passphrase")


class SftpServer:
    def __init__(self, account: Account, uri: str) -> None:
        """Connect and log in. Raises EnvironmentProblem (unknown key, not let in), Unreachable."""
        options = take_options(account, OPTIONS, uri)
        self._uri = uri
        self._client = paramiko.SSHClient()
        self._client.set_missing_host_key_policy(_Pinned(options.get("host_key", ""), uri))
        own_key = options.get("key_file")
        try:
            with self._errors():
                self._trust(options)
                self._client.connect(
                    account.host,
                    port=account.port or 22,
                    username=account.user or None,
                    password=account.password or None,
                    key_filename=own_key,
                    passphrase=options.get("passphrase"),
                    allow_agent=not account.password and own_key is None,
                    look_for_keys=not account.password and own_key is None,
                    timeout=TIMEOUT_SECONDS,
                    banner_timeout=TIMEOUT_SECONDS,
                    auth_timeout=TIMEOUT_SECONDS,
                )
                self._sftp = self._client.open_sftp()
                channel = self._sftp.get_channel()
                if channel is not None:
                    channel.settimeout(TIMEOUT_SECONDS)
        except BaseException:
            self._client.close()
            raise

    def entries(self, folder: str) -> list[Entry]:
        with self._errors():
            return [_entry(a, a.filename) for a in self._sftp.listdir_attr(folder)]

    def entry(self, path: str) -> Entry:
        with self._errors():
            return _entry(self._sftp.lstat(path), path.rpartition("/")[2])

    def read(self, path: str, start: int) -> Iterator[bytes]:
        with self._errors(), self._sftp.open(path, "rb") as file:
            file.seek(start)
            file.prefetch(max_concurrent_requests=IN_FLIGHT)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def close(self) -> None:
        self._client.close()

    def _trust(self, options: dict[str, str]) -> None:
        if "host_key" in options:
            return
        if "known_hosts" in options:
            self._client.load_system_host_keys(str(Path(options["known_hosts"]).expanduser()))
        else:
            self._client.load_system_host_keys()

    @contextlib.contextmanager
    def _errors(self) -> Generator[None, None, None]:
        """paramiko's errors as ours."""
        try:
            yield
        except paramiko.BadHostKeyException as error:
            raise EnvironmentProblem(
                "the server shows another key than is known of it",
                where=self._uri,
                why=f"it shows {error.key.fingerprint}; somebody may stand between",
                fix="ask the server's keeper; if the key was changed on purpose, correct known_hosts",
            ) from error
        except (paramiko.AuthenticationException, paramiko.PasswordRequiredException) as error:
            raise EnvironmentProblem(
                "the server does not let us in",
                where=self._uri,
                why=str(error),
                fix="check the user in the uri, `password: {env: NAME}`, or options: {key_file: PATH}",
            ) from error
        except (FileNotFoundError, PermissionError) as error:
            raise Denied(error.strerror or str(error)) from error
        except UnicodeError as error:
            raise Denied("it holds a name that is not UTF-8") from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            away = not isinstance(error, paramiko.SFTPError)
            raise Unreachable(str(error) or type(error).__name__, outage=away) from error


class _Pinned(paramiko.MissingHostKeyPolicy):
    """Refuses a key that no known_hosts has, unless its fingerprint is the one that the recipe names."""

    def __init__(self, fingerprint: str, uri: str) -> None:
        self._fingerprint, self._uri = fingerprint, uri

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        if self._fingerprint and key.fingerprint == self._fingerprint:
            return
        raise EnvironmentProblem(
            "the server's key is not the one that the recipe names"
            if self._fingerprint
            else "nobody knows this server's key",
            where=self._uri,
            why=f"it shows {key.get_name()} {key.fingerprint}",
            fix="compare that with what the server's keeper says; then write options: {host_key: 'SHA256:…'}",
        )


def _entry(attributes: paramiko.SFTPAttributes, name: str) -> Entry:
    mode, size = attributes.st_mode or 0, attributes.st_size or 0
    tests = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link"))
    kind = next((kind for test, kind in tests if test(mode)), "other")
    return Entry(name, kind, size if kind == "file" else 0, str(attributes.st_mtime or ""))
