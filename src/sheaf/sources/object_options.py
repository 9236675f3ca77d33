"""How to reach an object store: its URI, the recipe's `options`, and credentials from the environment or files.

`options` are the store's usual names: endpoint, region, account_name, access_key_id, service_account, sas_key, …
(secrets as {env: NAME} or {file: PATH}), and four of ours: `anonymous: "true"` for a public bucket, `profile` of the
AWS credentials file, `allow_http: "true"` for an endpoint from the environment that is not https, and `patience`, the
seconds for which a store that stopped answering is waited for.

Credentials come from the options, the environment, or the files that the store's own tools read. The machine's metadata
service is not asked: on a machine that has none that costs minutes, and a recipe should not borrow rights unseen.
"""

from __future__ import annotations

import configparser
import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from sheaf.errors import EnvironmentProblem, RecipeError
from sheaf.recipe import Secret, SourceSpec
from sheaf.recipe_file import resolve_secret
from sheaf.sources.s3 import S3, Access

if TYPE_CHECKING:
    from obstore.store import ClientConfig

URI = re.compile(r"(s3|gs|az|abfss?)://([^/@]+)(?:@([^/.]+)(\.[^/]+)?)?(?:/(.*))?", re.DOTALL)
STORES: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
READ_SECONDS = 30  # without a byte
BODY_SECONDS = 6 * 3600  # the library counts a whole body as one request; `retry.Pace` stops slow ones
OURS = {"anonymous", "profile", "allow_http", "patience"}
COMMON = "endpoint, region, account_name, access_key_id, secret_access_key, service_account, account_key, sas_key"
# Any of these, as an option or in the environment, is a way to credentials.
WAYS = {
    "s3": (
        *("access_key_id", "aws_access_key_id", "aws_web_identity_token_file"),
        *("aws_container_credentials_relative_uri", "aws_container_credentials_full_uri"),
    ),
    "gs": (
        *("service_account", "service_account_key", "application_credentials", "bearer_token"),
        *("google_service_account", "google_service_account_path", "google_service_account_key"),
        *("google_application_credentials", "google_bearer_token"),
    ),
    "az": (
        *("account_key", "access_key", "sas_key", "sas_token", "token", "bearer_token", "client_secret"),
        *("federated_token_file", "azure_storage_account_key", "azure_storage_access_key"),
        *("azure_storage_master_key", "azure_storage_sas_key", "azure_storage_sas_token", "azure_storage_token"),
        *("azure_storage_client_secret", "azure_client_secret", "azure_federated_token_file"),
    ),
}
WHERE = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT, or `gcloud auth application-default login`",
    "az": "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID, …_SECRET and AZURE_TENANT_ID",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URI points. Keys are taken as they are written: nothing in an object's URI is escaped."""

    scheme: str  # s3, gs, az
    bucket: str
    prefix: str  # without a slash at its end
    root: str  # of the URIs of its objects
    account: str = ""

    @staticmethod
    def of(spec: SourceSpec) -> Place:
        match = URI.fullmatch(spec.uri)
        if match is None:
            form = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, abfss://CONTAINER@ACCOUNT…/PREFIX"
            where = f"source '{spec.name}'"
            raise RecipeError("this is no URI of an object store", where=where, why=spec.uri, fix=f"write {form}")
        scheme, bucket, account, _, prefix = match.groups()
        root = spec.uri[: match.start(5)] if prefix is not None else f"{spec.uri}/"
        scheme = "az" if scheme.startswith("abfs") else scheme
        start = "" if scheme == "s3" else "/"  # S3's keys may begin with one, and then it is a part of the prefix
        return Place(scheme, bucket, (prefix or "").rstrip("/").lstrip(start), root, account or "")

    def uri(self, key: str) -> str:
        return self.root + key

    def key(self, uri: str) -> str:
        return uri.removeprefix(self.root)


def open_store(spec: SourceSpec, place: Place) -> ObjectStore:
    """The client. Nothing is connected yet.

    Raises RecipeError for an unknown option, EnvironmentProblem where there are no credentials.
    """
    config, ours = _config(spec, place)
    plain = any(value.startswith("http://") for name, value in config.items() if "endpoint" in name or "url" in name)
    client: ClientConfig = {
        "connect_timeout": "10s",
        "read_timeout": f"{READ_SECONDS}s",
        "timeout": f"{BODY_SECONDS}s",
        "user_agent": "sheaf",
    }
    if plain or ours.get("allow_http", "").lower() == "true":
        client["allow_http"] = True
    once = {"max_retries": 0, "retry_timeout": datetime.timedelta(seconds=READ_SECONDS)}
    try:
        return STORES[place.scheme](place.bucket, config=config, client_options=client, retry_config=once)
    except (BaseError, ValueError) as error:
        raise _wrong_options(spec, error) from None


def open_s3(spec: SourceSpec, place: Place, connections: int) -> S3 | None:
    """The client that takes keys as they are, where it can be used: for S3, without credentials or with plain keys."""
    if place.scheme != "s3":
        return None
    access = Access.of(place.bucket, _config(spec, place)[0])
    return None if access is None else S3(access, READ_SECONDS, connections)


def _config(spec: SourceSpec, place: Place) -> tuple[dict[str, str], dict[str, str]]:
    """The store's settings, credentials included, and those that are ours."""
    config = {name: _value(value) for name, value in spec.options.items()}
    ours = {name: config.pop(name) for name in OURS & config.keys()}
    if ours.get("anonymous", "").lower() == "true":
        config["skip_signature"] = "true"
    elif not _has_credentials(place.scheme, config):
        config |= _credentials(spec, place.scheme, ours.get("profile"))
    if place.account:
        config.setdefault("account_name", place.account)
    return config, ours


def _value(value: Secret | str) -> str:
    return value if isinstance(value, str) else resolve_secret(value)


def _has_credentials(scheme: str, options: Mapping[str, str]) -> bool:
    return any(way in options or os.environ.get(way.upper()) for way in WAYS[scheme])


def _credentials(spec: SourceSpec, scheme: str, profile: str | None) -> dict[str, str]:
    """From the files that the stores' own tools keep. Raises EnvironmentProblem if there are none."""
    if scheme == "gs" and (Path.home() / ".config/gcloud/application_default_credentials.json").exists():
        return {}  # the library finds it
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws/credentials")
    if scheme == "s3" and file.is_file():
        return _aws_profile(spec, file, profile or os.environ.get("AWS_PROFILE") or "default")
    raise EnvironmentProblem(
        f"there are no credentials for source '{spec.name}'",
        where=spec.uri,
        why=f"looked for: {WHERE[scheme]}",
        fix='set them, give `options:` as {env: NAME}, or say options: {anonymous: "true"} for a public bucket',
    )


def _aws_profile(spec: SourceSpec, file: Path, profile: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(file.read_text())
        section = parser[profile]
        found = {name: section[f"aws_{name}"] for name in ("access_key_id", "secret_access_key")}
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        # Not the error's text: a parser quotes the line that it cannot read.
        raise EnvironmentProblem(
            f"the credentials of source '{spec.name}' cannot be read",
            where=str(file),
            why=f"profile '{profile}': {type(error).__name__}",
            fix="the profile needs aws_access_key_id and aws_secret_access_key",
        ) from None
    token = section.get("aws_session_token")
    return found | ({"session_token": token} if token else {})


def _wrong_options(spec: SourceSpec, error: Exception) -> RecipeError:
    unknown = re.search(r"Configuration key: '([^']*)'", str(error))
    what = f"unknown option '{unknown[1]}'" if unknown else "the options do not fit together"
    missing = "account" in str(error).lower() and not unknown
    return RecipeError(
        what,
        where=f"source '{spec.name}', options",
        why="the account is not named" if missing else "",
        fix="add options: {account_name: …}" if missing else f"common ones: {COMMON}, {', '.join(sorted(OURS))}",
    )
