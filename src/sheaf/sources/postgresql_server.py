"""Where a PostgreSQL server is, and what its errors mean to the user.

The recipe's URI is taken apart here and given to libpq as quoted `name='value'` pairs with the password beside them:
so no message of libpq, which quotes URIs that it cannot read, can hold the password.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from adbc_driver_manager.dbapi import Error as AdbcError

from sheaf.errors import DataRefused, EnvironmentProblem, RecipeError, SheafError, TryAgain
from sheaf.recipe import Secret, SourceSpec
from sheaf.recipe_file import resolve_secret
from sheaf.sources.database import NotNow

CONNECT_SECONDS = 10
# Of libpq's parameters those that say where and how safely; none that runs commands, reads services or holds secrets.
PARAMETERS = frozenset(
    ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslnegotiation", "channel_binding", "gssencmode",
     "krbsrvname", "require_auth", "target_session_attrs", "connect_timeout", "keepalives_idle", "host", "port")
)  # fmt: skip
# SQLSTATE classes (PostgreSQL, appendix A) of what may be otherwise later: connection, resources, operator, rollback.
NOT_NOW = ("08", "53", "57", "58", "40", "55")
NOT_LET_IN = ("authentication failed", "no password supplied", "pg_hba.conf", "certificate", "not permitted to log in")


@dataclass(frozen=True, slots=True)
class Server:
    """uri: without password, as it stands in origins. parameters: libpq's, without password."""

    uri: str
    parameters: tuple[tuple[str, str], ...]
    secret: Secret | None

    @staticmethod
    def of(spec: SourceSpec) -> Server:
        """Raises RecipeError for a URI that names no database, or has a parameter that is not taken."""
        parts = urlsplit(spec.uri)
        user, at, hosts = parts.netloc.rpartition("@")
        pairs = [_host(host) for host in hosts.split(",")] if hosts else []
        found = {"user": unquote(user.partition(":")[0]), "dbname": unquote(parts.path.lstrip("/"))}
        found["host"] = ",".join(host for host, _ in pairs)
        found["port"] = ",".join(port for _, port in pairs) if any(port for _, port in pairs) else ""
        query = parse_qsl(parts.query, keep_blank_values=True)
        for name, value in query:
            if name not in PARAMETERS:
                raise RecipeError(
                    f"'{name}' is no parameter that a postgresql:// uri may have here",
                    where=f"source '{spec.name}', uri",
                    why=f"allowed: {', '.join(sorted(PARAMETERS))}",
                    fix="give a password as `password: {env: NAME}`",
                )
            found[name] = value
        if "\0" in "".join(found.values()) or ":" in user:
            raise RecipeError(
                "the uri cannot be used", where=f"source '{spec.name}', uri", why="it holds a NUL or a password"
            )
        shown = f"postgresql://{user}{at}{hosts}{quote(unquote(parts.path))}"
        return Server(shown, tuple((name, value) for name, value in found.items() if value), spec.password)

    def password(self) -> str:
        """The password, or "" (libpq then looks at PGPASSWORD and ~/.pgpass)."""
        return "" if self.secret is None else resolve_secret(self.secret)

    def connection(self, password: str) -> str:
        """libpq's connection string."""
        pairs = {"connect_timeout": str(CONNECT_SECONDS), **dict(self.parameters)}
        if password:
            pairs["password"] = password
        return " ".join(f"{name}={_quoted(value)}" for name, value in pairs.items())


def explain(error: AdbcError, spec: SourceSpec, server: Server, password: str, query: str = "") -> SheafError:
    """What libpq or the server said, as one of ours. query: what the server's position counts in, if it does."""
    told = {_text(name): _text(value) for name, value in error.details or ()}
    why = told.get("PG_DIAG_MESSAGE_PRIMARY") or str(error).partition("[libpq] ")[2].strip() or str(error)
    place = _place(query, told.get("PG_DIAG_STATEMENT_POSITION", "")) if query else ""
    return judge(error.sqlstate or "", why.replace(password, "…") if password else why, spec, server, place)


def judge(state: str, why: str, spec: SourceSpec, server: Server, place: str = "") -> SheafError:
    """The error that an SQLSTATE means ("" where there was no connection). place: where in the query."""
    why = " ".join(why.split())
    where = f"source '{spec.name}', {server.uri}"
    if state == "57014":
        fix = "make the query faster, give `increment` an index, or raise `timeout`"
        return TryAgain(f"the database took more than {spec.timeout:g} s", where=where, why=why, fix=fix)
    if any(words in why for words in NOT_LET_IN) or state.startswith("28"):
        fix = "check the user in the uri and `password:`" if spec.password else "add password: {env: NAME}"
        return EnvironmentProblem("the database does not let us in", where=where, why=why, fix=fix)
    if state == "3D000" or (not state and why.endswith("does not exist")):
        return DataRefused("there is no such database", where=where, why=why, fix="correct the uri")
    if state == "42501":
        fix = "grant the user SELECT on what the query reads"
        return DataRefused("the database refuses to give this to the user", where=where, why=why, fix=fix)
    if not state or state.startswith(NOT_NOW):
        return NotNow("the database does not answer now", where=where, why=why, fix="run again; what was read is kept")
    if state == "25006":
        why += " (nothing may be written)"
    return RecipeError(
        f"PostgreSQL refuses the query of source '{spec.name}'",
        where=where + place,
        why=f"{why} (SQLSTATE {state})",
        fix="correct `query:`; it is one SELECT, and `increment` a column of numbers, dates, times or text",
    )


def _place(query: str, position: str) -> str:
    """position: a character of the query, from 1; or ""."""
    if not position.isdigit():
        return ""
    before = query[: int(position) - 1]
    return f", query, line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _host(text: str) -> tuple[str, str]:
    """(host, port or "") of "db.local:5433" or "[::1]:5433"."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":")
    host, _, port = text.partition(":")
    return unquote(host), port


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
