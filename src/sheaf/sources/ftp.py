"""FTP, and FTPS (explicit TLS, certificates checked): one connection, passive mode, machine-readable listings.

Listings are MLSD's (RFC 3659); a server without it is asked by LIST in the form of Unix's `ls -l`, and each file's time
by MDTM. Names travel as Latin-1, which loses no byte, and are decoded here; the address that a server names for data
is ignored for its own (ftplib's default), so it cannot send us elsewhere. Plain FTP shows the password to the network.
"""

from __future__ import annotations

import contextlib
import ftplib
import re
import ssl
from collections.abc import Generator, Iterator

from sheaf.errors import EnvironmentProblem
from sheaf.sources.fileserver import Account, Denied, Entry, take_options
from sheaf.sources.retry import Unreachable

TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 18
UNSUPPORTED = ("500", "501", "502", "504")
LINE = re.compile(r"([-dlbcps])[-rwxsStTlL]{9}\S?\s+\d+\s+\S+\s+\S+\s+(\d+)\s+(\S+\s+\S+\s+\S+) (.+)", re.DOTALL)
KINDS = {
    "file": "file",
    "dir": "folder",
    "-": "file",
    "d": "folder",
    "l": "link",
}


class FtpServer:
    def __init__(self, account: Account, uri: str) -> None:
        """Connect and log in. Raises EnvironmentProblem if the server does not let us in, Unreachable."""
        take_options(account, (), uri)
        self._uri, self._listed = uri, False
        secure = account.scheme == "ftps"
        context = ssl.create_default_context() if secure else None
        self._ftp = (
            ftplib.FTP_TLS(timeout=TIMEOUT_SECONDS, encoding="latin-1", context=context)
            if secure
            else ftplib.FTP(timeout=TIMEOUT_SECONDS, encoding="latin-1")
        )
        with self._errors("", login=True):
            self._ftp.connect(account.host, account.port or ftplib.FTP_PORT)
            self._ftp.login(_sent(account.user), _sent(account.password))
            if isinstance(self._ftp, ftplib.FTP_TLS):
                self._ftp.prot_p()
            self._ftp.voidcmd("TYPE I")

    def entries(self, folder: str) -> list[Entry]:
        with self._errors(folder):
            if not self._listed:
                try:
                    found = [(name, facts) for name, facts in self._ftp.mlsd(_sent(folder), ["type", "size", "modify"])]
                    return [_entry(name, facts) for name, facts in found if facts.get("type") not in ("cdir", "pdir")]
                except ftplib.error_perm as error:
                    if not str(error).startswith(UNSUPPORTED):
                        raise
                    self._listed = True  # the server does not know MLSD
            return self._by_list(folder)

    def entry(self, path: str) -> Entry:
        folder, _, name = path.rpartition("/")
        with self._errors(path):
            if not self._listed:
                with contextlib.suppress(ftplib.error_perm):
                    answer = self._ftp.sendcmd(f"MLST {_sent(path)}").splitlines()
                    facts, _, _ = answer[1].strip().partition(" ") if len(answer) > 1 else ("", "", "")
                    pairs = (fact.partition("=") for fact in facts.rstrip(";").split(";"))
                    return _entry(_sent(name), {key.lower(): value for key, _, value in pairs})
        for entry in self.entries(folder or "/"):
            if entry.name == name:
                return entry
        raise Denied("it is no longer there")

    def read(self, path: str, start: int) -> Iterator[bytes]:
        with self._errors(path):
            self._ftp.voidcmd("TYPE I")
            with contextlib.closing(self._ftp.transfercmd(f"RETR {_sent(path)}", start or None)) as data:
                while chunk := data.recv(CHUNK_BYTES):
                    yield chunk
            self._ftp.voidresp()

    def close(self) -> None:
        self._ftp.close()

    def _by_list(self, folder: str) -> list[Entry]:
        lines: list[str] = []
        self._ftp.retrlines(f"LIST {_sent(folder)}", lines.append)
        found: list[Entry] = []
        for line in lines:
            match = LINE.fullmatch(line)
            if match is None:
                if line.startswith("total "):
                    continue
                raise Denied("its listing has neither the form of MLSD nor that of Unix")
            kind, name = KINDS.get(match[1], "other"), match[4]
            if kind == "link":
                name = name.partition(" -> ")[0]
            if name not in (".", ".."):
                changed = match[3] if kind != "file" else self._changed(f"{_sent(folder).rstrip('/')}/{name}", match[3])
                found.append(Entry(_name(name), kind, int(match[2]) if kind == "file" else 0, changed))
        return found

    def _changed(self, path: str, otherwise: str) -> str:
        try:
            return self._ftp.sendcmd(f"MDTM {path}")[4:].strip()
        except ftplib.error_perm:
            return otherwise

    @contextlib.contextmanager
    def _errors(self, path: str, login: bool = False) -> Generator[None, None, None]:
        """ftplib's errors as ours. None of them holds the password: a reply is the server's own words."""
        try:
            yield
        except ftplib.error_perm as error:
            if login or str(error).startswith("530"):
                fix = "check the user in the uri and `password: {env: NAME}`"
                raise EnvironmentProblem(
                    "the server does not let us in", where=self._uri, why=_words(error), fix=fix
                ) from error
            raise Denied(_words(error)) from error
        except ssl.SSLCertVerificationError as error:
            raise EnvironmentProblem("the server's certificate is not good", where=self._uri, why=str(error)) from error
        except ValueError as error:  # a line break in a name would be a second command
            raise Denied(str(error)) from error
        except (ftplib.Error, EOFError, OSError) as error:
            away = not isinstance(error, ftplib.Error)
            raise Unreachable(_words(error) or type(error).__name__, outage=away) from error


def _entry(name: str, facts: dict[str, str]) -> Entry:
    kind = KINDS.get(facts.get("type", "").lower(), "other")
    if facts.get("type", "").lower().startswith("os.unix=slink"):
        kind = "link"
    size = facts.get("size", "")
    return Entry(_name(name), kind, int(size) if size.isdigit() and kind == "file" else 0, facts.get("modify", ""))


def _name(text: str) -> str:
    """A name as it came (Latin-1, byte for byte) as Python names files."""
    return text.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


def _sent(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
