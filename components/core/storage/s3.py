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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ProxyConnectionError
from obstore.exceptions import BaseError
from obstore.store import S3Store
from s3transfer.exceptions import S3DownloadFailedError
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from components.core.errors import InputError, MissingObjectError, StepError, StoreAccessError
from components.core.storage.object_store import READS, StoredObject

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client
    from obstore.store import ClientConfig, S3Credential

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
"""Variables that lead boto3's chain to other credentials: a pod's service account (IRSA, EKS Pod Identity), or a file. One of them
must be set, since the end of the chain, the metadata service of a cloud's machine, would give a pod the rights of its node."""
_MISSING_KEY = {"NoSuchKey", "404", "NotFound"}
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken", "401", "403"}
_UNAVAILABLE = (BotoCoreError, ClientError, OSError)
_RENEWAL = timedelta(minutes=5)
"""obstore then fetches credentials again from boto3, which renews them 10 to 15 minutes before they expire."""
_IMPATIENT = Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 1})
"""For checks and credentials, which give up on a dead endpoint within seconds; otherwise a store may restart under a run."""
_session_lock = threading.Lock()  # a boto3 session is not thread-safe, its clients are


def credential_variables(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The variables that lead to the environment's credentials; empty if there are none."""
    # One key without the other is a mistake, and not a request for the chain.
    ways = (KEYS,) if any(environment.get(name) for name in KEYS) else CHAIN
    return next((names for names in ways if all(environment.get(name) for name in names)), ())


class S3Bucket:
    """A bucket at the endpoint of this process's environment, by full keys; ObjectStore is the interface. Thread-safe.

    Attributes:
        url: the endpoint; None for Amazon S3.
        region: us-east-1 if none is configured.
        objects: obstore's client, for many small requests.
        control: boto3's client.
        FAILURES: what boto3's clients raise.
    """

    FAILURES = (ClientError, BotoCoreError, Boto3Error, S3DownloadFailedError)

    def __init__(self, bucket: str) -> None:
        """Makes the clients, without a request to the store.

        Raises:
            InputError: no credentials, an unknown profile, or an endpoint that is not an http(s) address.
        """
        self.bucket = bucket
        if not credential_variables(os.environ):
            missing = next(name for name in KEYS if not os.environ.get(name))
            raise InputError(
                f"object store: {missing} is not set; set {' and '.join(KEYS)}, and AWS_ENDPOINT_URL unless the store is Amazon "
                "S3; or AWS_PROFILE, or let the pod's service account have a role"
            )
        self.url, self.region = _endpoint()
        self._address = "Amazon S3" if self.url is None else _one_line(self.url)
        self._loopback = self.url is not None and urlsplit(self.url).hostname in LOOPBACK  # which no proxy can reach
        self._credentials = _credentials()
        try:
            self.control = self._control_client()
            self.objects = self._bulk_client()
        except (BotoCoreError, BaseError, ValueError) as error:
            raise InputError(f"s3://{bucket}: {self._detail(error)}; correct the AWS and proxy variables") from None

    def check(self, prefix: str) -> None:
        """See ObjectStore.check."""
        uri = f"s3://{self.bucket}"
        try:
            self._control_client(_IMPATIENT).list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1)
        except ClientError as error:
            found = self.translated(error, uri, "list")
            raise (found if isinstance(found, InputError) else StoreAccessError(str(found))) from None
        except (BotoCoreError, ValueError) as error:
            advice = f"start the store or correct {_endpoint_variable()}"
            if isinstance(error, ProxyConnectionError):
                advice = f"correct HTTPS_PROXY and HTTP_PROXY, or add the host to NO_PROXY ({self._detail(error)})"
            raise StoreAccessError(
                f"{uri}: no answer from {self._address} ({type(error).__name__}); {advice}"
            ) from None

    def unfinished_uploads(self, prefix: str) -> Iterator[StoredObject]:
        """Uploads in parts that have neither ended nor been aborted; none if the server does not list them."""
        pages = self.control.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
        try:
            for page in pages:
                for found in page.get("Uploads", []):
                    yield StoredObject(found["Key"], 0, found["Initiated"], found["UploadId"])
        except ClientError as error:
            if _code(error) not in ("NotImplemented", "MethodNotAllowed", "501", "405"):
                raise

    def give_up_upload(self, key: str, upload: str) -> None:
        """Frees the parts of an upload; if it has ended, that is no error."""
        try:
            self.control.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        except ClientError as error:
            if _code(error) not in ("NoSuchUpload", "404"):
                raise

    def upload(self, path: Path, key: str) -> None:
        """Writes a file of any size, in parallel parts."""
        self.control.upload_file(str(path), self.bucket, key, Config=TRANSFER)

    @retry(retry=retry_if_exception_type(S3DownloadFailedError), stop=stop_after_attempt(5), reraise=True)
    def download(self, key: str, path: Path) -> None:
        """Reads an object of any size into a file, in parallel parts; again if it is replaced between two of them."""
        self.control.download_file(self.bucket, key, str(path), Config=TRANSFER)

    def translated(self, error: Exception, uri: str, action: str) -> Exception:
        """The error of either client as this package's, in one line."""
        code = _code(error) if isinstance(error, ClientError) else _quoted_code(str(error))
        if code == "NoSuchBucket":
            return InputError(f"{uri}: {self._address} has no such bucket; create it, or correct its name")
        if code in _REFUSED:
            advice = f"correct {' and '.join(credential_variables(os.environ))}, or the rights of that user"
            return StoreAccessError(f"{uri}: {self._address} refused to {action} ({code}); {advice}")
        if action in READS and (code in _MISSING_KEY or isinstance(error, FileNotFoundError)):
            return MissingObjectError(uri)
        return StepError(f"{uri}: {action} failed at {self._address} ({self._detail(error)})")

    def _detail(self, error: BaseException) -> str:
        """An error's message without credentials, which a client or server may have quoted."""
        # obstore appends a dump of its internals, which may hold what the server answered.
        message = f"{type(error).__name__}: {error}".partition("Debug source")[0]
        with contextlib.suppress(*_UNAVAILABLE):  # which may be why there is a message
            found = self._credentials.get_frozen_credentials()
            for secret in filter(None, (found.secret_key, found.token, found.access_key)):
                message = message.replace(secret, "***")
        return _one_line(message)[:300]

    def _control_client(self, patience: Config | None = None) -> S3Client:
        config = Config(
            signature_version="s3v4",
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 6},
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            proxies={} if self._loopback else None,
            s3={"addressing_style": "path" if self.url else "auto", "payload_signing_enabled": False},
        )
        with _session_lock:
            return _session().client(
                "s3",
                endpoint_url=self.url,
                region_name=self.region,
                config=config.merge(patience) if patience else config,
            )

    def _bulk_client(self) -> S3Store:
        endpoint: dict[str, Any] = {} if self.url is None else {"endpoint": self.url}
        client: ClientConfig = {"connect_timeout": "5s", "timeout": "60s", "allow_http": True}
        if self._loopback:  # a proxy that no host uses, instead of the variables'
            client |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": ",".join(LOOPBACK)}
        return S3Store(
            self.bucket,
            region=self.region,
            virtual_hosted_style_request=self.url is None,
            client_options=client,
            # Long enough for a store that restarts, short enough that a dead one fails the step within a minute.
            retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=60)},
            credential_provider=self._obstore_credentials,
            **endpoint,
        )

    def _obstore_credentials(self) -> S3Credential:
        found = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": found.access_key or "",
            "secret_access_key": found.secret_key or "",
            "token": found.token or None,  # the variable may be empty
            "expires_at": datetime.now(UTC) + _RENEWAL,
        }


def _endpoint() -> tuple[str | None, str]:
    """URL and region that variables and files configure, in boto3's order; None for Amazon S3, us-east-1 if there is no region.

    InputError for an unknown profile, or a URL that is no http(s) address.
    """
    try:
        with _session_lock:
            session = _session()
            region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
            # A client is the public way to resolve the endpoint; its keys keep it from fetching credentials.
            client = session.client("s3", region_name=region, aws_access_key_id="-", aws_secret_access_key="-")
        found = client.meta.endpoint_url
        address = urlsplit(found)
        if address.scheme not in ("http", "https"):
            raise ValueError(f"Invalid endpoint: {found}")
        _ = address.port  # ValueError unless it is a number; boto3 accepts it, obstore would panic
    except (BotoCoreError, ValueError) as error:
        name = _endpoint_variable()
        advice = "correct AWS_PROFILE and its files"
        if isinstance(error, ValueError) and os.environ.get(name):  # boto3 says "Invalid endpoint"
            advice = f"write {name} as http://HOST:PORT or https://HOST"
        raise InputError(f"object store: {_one_line(str(error))}; {advice}") from None
    amazon = (address.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return None if amazon else found, region


def _credentials() -> Credentials:
    """What boto3's chain finds, which renews itself before it expires; InputError if that is nothing, or cannot be fetched."""
    try:
        with _session_lock:
            found = _session().get_credentials()
        if found is not None:
            found.get_frozen_credentials()
            return found
        reason = "there are none"
    except _UNAVAILABLE as error:
        reason = _one_line(str(error))
    raise StoreAccessError(
        f"object store: no credentials by {' and '.join(credential_variables(os.environ))} ({reason}); correct it, let this "
        f"service account take the role, or set {' and '.join(KEYS)}"
    )


def _session() -> boto3.session.Session:
    """One session for the same variables: it parses the S3 service model once, which costs more than a request."""
    return _session_of(tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))))


@functools.lru_cache(maxsize=4)
def _session_of(_variables: tuple[tuple[str, str], ...]) -> boto3.session.Session:
    session = boto3.session.Session()
    # Also of the clients that fetch credentials: a role's service that does not answer must not hold a command for minutes.
    session._session.set_default_client_config(_IMPATIENT)
    return session


def _endpoint_variable() -> str:
    """The variable that decides the endpoint."""
    return "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"


def _quoted_code(message: str) -> str:
    """The S3 error code in a message of obstore or boto3's transfers, which quote the server's answer; else empty.

    Only its position counts: the answer also holds a request id, whose digits may look like a code.
    """
    for pattern in (r"<Code>(\w+)</Code>", r"An error occurred \((\w+)\)", r"status code: (\d{3})\b"):
        if found := re.search(pattern, message):
            return found[1]
    return ""


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _one_line(message: str) -> str:
    """The message on one line, its addresses without user names and passwords."""
    return re.sub(r"://\S*@", "://", " ".join(message.split()))
