"""What an object store's answer means: not now, never, or the user can mend it. No message repeats a URL of theirs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import httpx
from obstore.exceptions import BaseError, InvalidPathError, PreconditionError

from sheaf.errors import DataRefused, EnvironmentProblem, RecipeError, SheafError
from sheaf.sources.retry import Unreachable
from sheaf.sources.s3 import Answer

STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
AWAY = {429, 502, 503, 504}  # 503 is also S3's SlowDown
NOT_NOW = {408, 409, 425, 429}
ODD_KEY = "OddKey"  # ours, for a listing that the library cannot say
# They are about our credentials, not about the object: another run, with good ones, may have it.
CREDENTIALS = {
    *("ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "TokenRefreshRequired", "RequestTimeTooSkewed"),
    *("InvalidToken", "AuthenticationFailed", "InvalidAuthenticationInfo"),
}
T = TypeVar("T")


def ask(call: Callable[[], T]) -> T:
    """The call's result. Raises Answer for the store's last word, Unreachable for what may pass."""
    try:
        return call()
    except FileNotFoundError as error:
        raise Answer(404, _status(error)[1]) from None
    except (BaseError, Answer, httpx.HTTPError) as error:
        raise judged(error) from None


def judged(error: BaseError | Answer | httpx.HTTPError, *, progress: bool = False) -> Answer | Unreachable:
    """progress: whether the try got on before."""
    if isinstance(error, httpx.HTTPError):
        return Unreachable("there is no answer", outage=True, progress=progress)
    if isinstance(error, PreconditionError):
        return Answer(412)
    if isinstance(error, InvalidPathError):
        return Answer(0, ODD_KEY)
    status, code = (error.status, error.code) if isinstance(error, Answer) else _status(error)
    if status == 0 and type(error).__name__ == "GenericError":
        return Unreachable("there is no answer", outage=True, progress=progress)
    if status in NOT_NOW or status >= 500:
        return Unreachable(f"it answers {status} {code}".rstrip(), outage=status in AWAY, progress=progress)
    return Answer(status, code or ("" if status else type(error).__name__))


def explain(error: Answer, name: str, uri: str) -> SheafError:
    """Why a place cannot be listed."""
    status, code = error.status, error.code
    why = f"the store answers {status} {code}".rstrip() if status else code
    if code == ODD_KEY:
        return DataRefused(
            f"source '{name}' holds a key that cannot be listed",
            where=uri,
            why="a key has an empty part (a//b), a part . or .., or a control character",
            fix="of S3 it is read with an access key, or anonymously; else rename it, or name prefixes beside it",
        )
    if status == 404:
        return DataRefused(f"the bucket of source '{name}' does not exist", where=uri, why=why, fix="check the uri")
    if status in (301, 302, 307, 308) or code in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
        fix = "add options: {region: …} with the bucket's region, or AWS_REGION to the environment"
        return RecipeError(f"the bucket of source '{name}' lies in another region", where=uri, why=why, fix=fix)
    if status in (401, 403):
        fix = "check which credentials are in the environment, and that they may list and read this prefix"
        return EnvironmentProblem(f"the store does not let source '{name}' list", where=uri, why=why, fix=fix)
    return DataRefused(f"source '{name}' cannot be listed", where=uri, why=why)


def _status(error: Exception) -> tuple[int, str]:
    """The HTTP status and the store's own word for it; 0 or "" where the error has none."""
    text = str(error)
    if "BareRedirect" in text:  # a redirect that does not say where to: S3's way to say "another region"
        return 301, "PermanentRedirect"
    status, code = STATUS.search(text), CODE.search(text)
    return int(status[1]) if status else 0, code[1] if code else ""
