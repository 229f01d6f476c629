"""The S3 endpoint of this process and its two clients, tuned once here. Credentials come from the environment only.

boto3 moves large files and makes control calls; obstore keeps many small requests in flight, at a third of the CPU. Where the
environment has no keys, but says where a pod's service account or a user gets some, both ask boto3's default chain for them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

from components.core.errors import InputError

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client
    from obstore.store import ClientConfig

MIB = 1024 * 1024
_session_lock = threading.Lock()
IN_FLIGHT = 32
"""Site-sized requests in flight from one get_many or put_many."""

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
"""Variables that say where credentials are to be had: by a pod's service account (IRSA, EKS Pod Identity), or in a file. Without
any of them nothing is asked: the metadata service of a cloud's machine would let a pod be what its node is."""
_NOT_HAD = (BotoCoreError, ClientError, OSError)
RENEWED = timedelta(minutes=5)
"""After which obstore asks the chain again, which renews what is about to expire: within 10 to 15 minutes of its end."""


def has_keys(environment: Mapping[str, str]) -> bool:
    """Whether the environment holds keys, or says by CHAIN where they are to be had."""
    return all(environment.get(name) for name in KEYS) or _has_chain(environment)


def _has_chain(environment: Mapping[str, str]) -> bool:
    # One key without the other is a slip, and not a wish for the chain.
    if any(environment.get(name) for name in KEYS):
        return False
    return any(all(environment.get(name) for name in names) for names in CHAIN)


@dataclass(frozen=True)
class Endpoint:
    """Where the object store listens and who we are there; the secrets stay out of its repr.

    Without keys both clients ask boto3's default chain, by this process's own environment.
    """

    url: str | None
    region: str
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Endpoint:
        """Reads AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION.

        Without an endpoint it is Amazon's own; without keys, but with a variable of CHAIN, they are its, and so may the region be;
        without a region it is us-east-1.

        Raises:
            InputError: no credentials, or an endpoint that is not an http(s) address.
        """
        missing = [name for name in KEYS if not environment.get(name)]
        if missing and not _has_chain(environment):
            raise InputError(
                f"object store: {missing[0]} is not set; set {' and '.join(KEYS)}, and AWS_ENDPOINT_URL unless the store is Amazon "
                "S3; or AWS_PROFILE, or let the pod's service account have a role"
            )
        url = environment.get("AWS_ENDPOINT_URL") or None
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise InputError(
                f"AWS_ENDPOINT_URL {_without_userinfo(url)!r}: write it as http://HOST:PORT or https://HOST"
            )
        return cls(
            url=url,
            region=environment.get("AWS_REGION")
            or environment.get("AWS_DEFAULT_REGION")
            or (_region_of_profile() if missing else None)
            or "us-east-1",
            access_key=None if missing else environment[KEYS[0]],
            secret_key=None if missing else environment[KEYS[1]],
            session_token=None if missing else environment.get("AWS_SESSION_TOKEN") or None,
        )

    @property
    def address(self) -> str:
        """The endpoint as messages name it."""
        return "Amazon S3" if self.url is None else _without_userinfo(self.url)

    @property
    def correct(self) -> str:
        """What to do about credentials that are refused, as messages begin it."""
        return f"correct {' and '.join(KEYS if self.access_key is not None else _named_chain())}"

    def conceal(self, message: str) -> str:
        """The message on one line, with the credentials blotted out, in case a client or server quoted them."""
        own: tuple[str | None, ...] = (self.secret_key, self.session_token, self.access_key)
        if self.access_key is None and _chain.cache_info().currsize:
            with contextlib.suppress(*_NOT_HAD):  # which may be why there is a message
                held = _chain().get_frozen_credentials()
                own = (held.secret_key, held.token, held.access_key)
        for secret in own:
            if secret:
                message = message.replace(secret, "***")
        return " ".join(message.split())

    def control_client(self, *, impatient: bool = False) -> S3Client:
        """A boto3 client; thread-safe.

        Args:
            impatient: give up on a dead endpoint within seconds, for checks; otherwise a store may restart under a run.

        Raises:
            InputError: the chain has no credentials.
        """
        loopback = self.url is not None and urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        config = Config(
            signature_version="s3v4",
            connect_timeout=2 if impatient else 10,
            read_timeout=5 if impatient else 60,
            retries={"mode": "standard", "total_max_attempts": 1 if impatient else 6},
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A company proxy in the environment must not see requests to this machine.
            proxies={} if loopback else None,
            s3={"addressing_style": "path" if self.url else "auto", "payload_signing_enabled": False},
        )
        if self.access_key is None:
            _chain()  # with its own message where it has none
        with _session_lock:
            return _session().client(
                "s3",
                endpoint_url=self.url,
                region_name=self.region,
                aws_access_key_id=self.access_key,
                aws_secret_access_key=self.secret_key,
                aws_session_token=self.session_token,
                config=config,
            )

    def bulk_client(self, bucket: str) -> S3Store:
        """An obstore client of one bucket, for many small requests; thread-safe."""
        options: ClientConfig = {"connect_timeout": "5s", "timeout": "60s", "allow_http": True}
        given: dict[str, Any] = {} if self.url is None else {"endpoint": self.url}
        if self.access_key is None:
            given["credential_provider"] = Boto3CredentialProvider(_session(), ttl=RENEWED)
        else:
            given |= {"access_key_id": self.access_key, "secret_access_key": self.secret_key}
            if self.session_token is not None:
                given["session_token"] = self.session_token
        return S3Store(
            bucket,
            region=self.region,
            virtual_hosted_style_request=self.url is None,
            client_options=options,
            # Long enough for a store that restarts, short enough that a dead one fails the step within a minute.
            retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=60)},
            **given,
        )


@functools.cache
def _chain() -> Credentials:
    """What boto3's default chain finds, which renews itself where it expires; thread-safe.

    Raises:
        InputError: nothing, or it cannot be had.
    """
    try:
        with _session_lock:
            found = _session().get_credentials()
        if found is not None:
            found.get_frozen_credentials()
            return found
        why = "there are none"
    except _NOT_HAD as error:
        why = " ".join(str(error).split())
    raise InputError(
        f"object store: no credentials by {' and '.join(_named_chain())} ({why}); correct it, let this service account take the "
        f"role, or set {' and '.join(KEYS)}"
    )


def _region_of_profile() -> str | None:
    """What the profile says, if there is one; a profile that cannot be read is told of where its keys are asked for."""
    with contextlib.suppress(*_NOT_HAD):
        return _session().region_name
    return None


def _named_chain() -> tuple[str, ...]:
    """The variables that say where credentials are to be had."""
    return next((names for names in CHAIN if all(os.environ.get(name) for name in names)), CHAIN[0])


@functools.cache
def _session() -> boto3.session.Session:
    """One session a process: it parses the S3 service model once, which costs more than a request; not thread-safe."""
    return boto3.session.Session()


def _without_userinfo(url: str) -> str:
    """The URL without a user name and password somebody may have put into it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else url
