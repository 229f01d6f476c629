"""S3 buckets: endpoint, region and credentials by the usual AWS variables and files; the two clients, configured once.

boto3 resolves endpoint, region and credentials, moves large files in parts and manages unfinished uploads. obstore makes all other
requests, at a third of the processor time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ProxyConnectionError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import S3Store

from components.core.errors import InputError, MissingObjectError, StepError
from components.core.storage.object_store import UnfinishedUpload

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client
    from obstore.store import ClientConfig

MIB = 1024 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TRANSFER = TransferConfig(multipart_threshold=32 * MIB, multipart_chunksize=32 * MIB, max_concurrency=8)
"""Parts of 32 MiB on 8 threads: 2.1 x the default's download rate, measured against a local server."""

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
CHAIN = (
    ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    ("AWS_PROFILE",),
    ("AWS_SHARED_CREDENTIALS_FILE",),
)
"""Variables that lead boto3's chain to credentials: of a pod's service account (IRSA, EKS Pod Identity), or in a file. Without any
of them the chain is not asked: the metadata service of a cloud's machine would give a pod the rights of its node."""
_MISSING_KEY = {"NoSuchKey", "404", "NotFound"}
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken", "401", "403"}
_UNAVAILABLE = (BotoCoreError, ClientError, OSError)
_RENEWAL = timedelta(
    minutes=5
)  # obstore then asks the chain again, which renews credentials 10 to 15 minutes before they expire
_IMPATIENT = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 1})
_session_lock = threading.Lock()  # a boto3 session is not thread-safe, its clients are


def has_keys(environment: Mapping[str, str]) -> bool:
    """Whether the environment holds keys, or leads to some by a variable of CHAIN."""
    return all(environment.get(name) for name in KEYS) or _has_chain(environment)


def _has_chain(environment: Mapping[str, str]) -> bool:
    # One key without the other is a mistake, and not a request for the chain.
    if any(environment.get(name) for name in KEYS):
        return False
    return any(all(environment.get(name) for name in names) for names in CHAIN)


@dataclass(frozen=True)
class S3Endpoint:
    """Address, region and credentials; the secrets stay out of its repr. Without keys both clients use boto3's chain."""

    url: str | None
    region: str
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls) -> S3Endpoint:
        """The endpoint of this process's AWS variables and configuration files, in boto3's order of precedence.

        Without an endpoint it is Amazon S3; without a region us-east-1.

        Raises:
            InputError: no credentials, an unknown profile, or an endpoint that is not an http(s) address.
        """
        environment = os.environ
        missing = [name for name in KEYS if not environment.get(name)]
        if missing and not _has_chain(environment):
            raise InputError(
                f"object store: {missing[0]} is not set; set {' and '.join(KEYS)}, and AWS_ENDPOINT_URL unless the store is Amazon "
                "S3; or AWS_PROFILE, or let the pod's service account have a role"
            )
        name = endpoint_variable()
        if environment.get(name) and not _is_http(environment[name]):
            raise InputError(
                f"{name} {_without_userinfo(environment[name])!r}: write it as http://HOST:PORT or https://HOST"
            )
        try:
            with _session_lock:
                url, region = _configured(_session())
        except (BotoCoreError, ValueError) as error:
            of_variable = environment.get(name) and str(error).startswith("Invalid endpoint")  # such as http://a_b
            holder = name if of_variable else "AWS_PROFILE and its files"
            raise InputError(f"object store: {_one_line(str(error))}; correct {holder}") from None
        return cls(
            url=url,
            region=environment.get("AWS_REGION") or region or "us-east-1",
            access_key=None if missing else environment[KEYS[0]],
            secret_key=None if missing else environment[KEYS[1]],
            session_token=None if missing else environment.get("AWS_SESSION_TOKEN") or None,
        )

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine, which no proxy can reach."""
        return self.url is not None and urlsplit(self.url).hostname in LOOPBACK

    @property
    def address(self) -> str:
        """The endpoint as messages name it."""
        return "Amazon S3" if self.url is None else _without_userinfo(self.url)

    @property
    def correct(self) -> str:
        """The first words of what to do about refused credentials."""
        return f"correct {' and '.join(KEYS if self.access_key is not None else _chain_variables())}"

    def conceal(self, message: str) -> str:
        """The message on one line, without credentials that a client or server may have quoted."""
        secrets: tuple[str | None, ...] = (self.secret_key, self.session_token, self.access_key)
        if self.access_key is None:
            with contextlib.suppress(*_UNAVAILABLE, InputError):  # which may be why there is a message
                found = _chain_credentials().get_frozen_credentials()
                secrets = (found.secret_key, found.token, found.access_key)
        for secret in filter(None, secrets):
            message = message.replace(secret, "***")
        return _one_line(message)

    def control_client(self, *, impatient: bool = False) -> S3Client:
        """A boto3 client; thread-safe.

        Args:
            impatient: give up on a dead endpoint within seconds, for checks; otherwise a store may restart under a run.

        Raises:
            InputError: the chain has no credentials.
        """
        config = Config(
            signature_version="s3v4",
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 6},
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            proxies={} if self.loopback else None,
            s3={"addressing_style": "path" if self.url else "auto", "payload_signing_enabled": False},
        )
        if self.access_key is None:
            _chain_credentials()  # raises with a message of its own
        with _session_lock:
            return _session().client(
                "s3",
                endpoint_url=self.url,
                region_name=self.region,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret_key,
                aws_session_token=self.session_token,
                config=config.merge(_IMPATIENT) if impatient else config,
            )

    def bulk_client(self, bucket: str) -> S3Store:
        """An obstore client of one bucket, for many small requests; thread-safe."""
        options: dict[str, Any] = {} if self.url is None else {"endpoint": self.url}
        if self.access_key is None:
            options["credential_provider"] = Boto3CredentialProvider(_session(), ttl=_RENEWAL)
        else:
            options |= {"access_key_id": self.access_key, "secret_access_key": self.secret_key}
            if self.session_token is not None:
                options["session_token"] = self.session_token
        client: ClientConfig = {"connect_timeout": "5s", "timeout": "60s", "allow_http": True}
        if self.loopback:  # a proxy that no host uses, instead of the variables'
            client |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": ",".join(LOOPBACK)}
        return S3Store(
            bucket,
            region=self.region,
            virtual_hosted_style_request=self.url is None,
            client_options=client,
            # Long enough for a store that restarts, short enough that a dead one fails the step within a minute.
            retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=60)},
            **options,
        )


class S3Bucket:
    """A bucket at the endpoint of this process's environment, by full keys; ObjectStore is the interface. Thread-safe.

    Attributes:
        objects: obstore's client.
        FAILURES: what boto3's clients raise.
    """

    FAILURES = (ClientError, BotoCoreError, Boto3Error)

    def __init__(self, bucket: str) -> None:
        """Makes the clients, without a request."""
        self.bucket = bucket
        self.endpoint = S3Endpoint.from_environment()
        try:
            self.control = self.endpoint.control_client()
            self.objects = self.endpoint.bulk_client(bucket)
        except (BotoCoreError, BaseError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"s3://{bucket}: {self._detail(error)}; correct the AWS and proxy variables") from None

    def check(self, prefix: str, instead: str) -> None:
        """See ObjectStore.check."""
        where = self.endpoint.address
        try:
            client = self.endpoint.control_client(impatient=True)
            client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1)
        except ClientError as error:
            code = _code(error)
            if code == "NoSuchBucket":
                raise InputError(f"s3://{self.bucket}: {where} has no such bucket; {instead}") from None
            if code in _REFUSED:
                raise InputError(
                    f"s3://{self.bucket}: {where} refused the credentials ({code}); "
                    f"{self.endpoint.correct}, or let them list this bucket"
                ) from None
            raise InputError(f"s3://{self.bucket}: {where} cannot be used ({self._detail(error)})") from None
        except (BotoCoreError, ValueError) as error:
            advice = f"start the store or correct {endpoint_variable()}"
            if isinstance(error, ProxyConnectionError):
                advice = f"correct HTTPS_PROXY and HTTP_PROXY, or add the host to NO_PROXY ({self._detail(error)})"
            raise InputError(f"s3://{self.bucket}: no answer from {where} ({type(error).__name__}); {advice}") from None

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Uploads in parts that have neither ended nor been aborted; none if the server does not list them."""
        pages = self.control.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
        try:
            for page in pages:
                for found in page.get("Uploads", []):
                    yield UnfinishedUpload(found["Key"], found["UploadId"], found["Initiated"])
        except ClientError as error:
            if _code(error) not in ("NotImplemented", "MethodNotAllowed", "501", "405"):
                raise

    def give_up_upload(self, key: str, upload: str) -> None:
        """Frees the parts of an upload; one that has ended is no error."""
        try:
            self.control.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        except ClientError as error:
            if _code(error) not in ("NoSuchUpload", "404"):
                raise

    def upload(self, path: Path, key: str) -> None:
        """Writes a file of any size, in parallel parts."""
        self.control.upload_file(str(path), self.bucket, key, Config=TRANSFER)

    def download(self, key: str, path: Path) -> None:
        """Reads an object of any size into a file, in parallel parts."""
        self.control.download_file(self.bucket, key, str(path), Config=TRANSFER)

    def translated(self, error: Exception, uri: str, action: str) -> Exception:
        """The error of either client as this package's, in one line."""
        where = self.endpoint.address
        code = _code(error) if isinstance(error, ClientError) else _quoted_code(str(error))
        if code == "NoSuchBucket":
            return InputError(f"{uri}: {action} failed, {where} has no bucket {self.bucket}; create it")
        if code in _REFUSED:
            return InputError(
                f"{uri}: {action} refused by {where} ({code}); {self.endpoint.correct} or the rights of that user"
            )
        if code in _MISSING_KEY or isinstance(error, FileNotFoundError):
            return MissingObjectError(uri)
        return StepError(f"{uri}: {action} failed at {where} ({self._detail(error)})")

    def _detail(self, error: BaseException) -> str:
        # obstore appends a dump of its internals, which may hold what the server answered.
        return self.endpoint.conceal(f"{type(error).__name__}: {error}".partition("Debug source")[0])[:300]


def endpoint_variable() -> str:
    """The variable that decides the endpoint."""
    return "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"


def _quoted_code(message: str) -> str:
    """The S3 error code in a message of obstore or boto3's transfers, which quote the server's answer; else empty.

    Only its position counts: the answer also holds a request id, whose digits may look like a code.
    """
    for pattern in (r"<Code>(\w+)</Code>", r"An error occurred \((\w+)\)", r"status code: (\d{3})\b"):
        found = re.search(pattern, message)
        if found:
            return found.group(1)
    return ""


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _session() -> boto3.session.Session:
    """One session for the same variables: it parses the S3 service model once, which costs more than a request."""
    return _session_of(tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))))


@functools.lru_cache(maxsize=4)
def _session_of(_variables: tuple[tuple[str, str], ...]) -> boto3.session.Session:
    session = boto3.session.Session()
    # Also of the clients that fetch credentials: a role's service that does not answer must not hold a command for minutes.
    session._session.set_default_client_config(_IMPATIENT)
    return session


def _configured(session: boto3.session.Session) -> tuple[str | None, str | None]:
    """Endpoint and region that variables and files configure; None for Amazon's own and for no region."""
    # A client is the public way to ask; its keys keep it from asking the chain.
    client = session.client(
        "s3", region_name=session.region_name or "us-east-1", aws_access_key_id="-", aws_secret_access_key="-"
    )
    url = client.meta.endpoint_url
    host = urlsplit(url).hostname or ""
    return None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else url, session.region_name


def _chain_credentials() -> Credentials:
    """What boto3's chain finds, which renews itself before it expires; thread-safe.

    Raises:
        InputError: nothing, or it cannot be fetched.
    """
    try:
        with _session_lock:
            found = _session().get_credentials()
        if found is not None:
            found.get_frozen_credentials()
            return found
        why = "there are none"
    except _UNAVAILABLE as error:
        why = _one_line(str(error))
    raise InputError(
        f"object store: no credentials by {' and '.join(_chain_variables())} ({why}); correct it, let this service account take "
        f"the role, or set {' and '.join(KEYS)}"
    )


def _chain_variables() -> tuple[str, ...]:
    """The variables that lead to credentials."""
    return next((names for names in CHAIN if all(os.environ.get(name) for name in names)), CHAIN[0])


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # a port that is no number, or half of the brackets of an IPv6 address
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _one_line(message: str) -> str:
    """The message on one line, its addresses without user names and passwords."""
    return re.sub(r"://[^/\s]*@", "://", " ".join(message.split()))


def _without_userinfo(url: str) -> str:
    """The URL without a user name and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else url
