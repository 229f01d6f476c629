"""The S3 endpoint of this process and its two clients, tuned once here. Credentials come from the environment only.

boto3 moves large files and makes control calls; obstore keeps many small requests in flight, at a third of the CPU.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from obstore.store import S3Store

from components.core.errors import InputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from obstore.store import ClientConfig

MIB = 1024 * 1024
_session_lock = threading.Lock()
IN_FLIGHT = 32
"""Site-sized requests in flight from one get_many or put_many."""

TRANSFER = TransferConfig(multipart_threshold=32 * MIB, multipart_chunksize=32 * MIB, max_concurrency=8)
"""Parts of 32 MiB on 8 threads: 2.1 x the default's download rate, measured against a local server."""


@dataclass(frozen=True)
class Endpoint:
    """Where the object store listens and who we are there; the secrets stay out of its repr."""

    url: str | None
    region: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Endpoint:
        """Reads AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION.

        Without an endpoint it is Amazon's own; without a region us-east-1.

        Raises:
            InputError: no credentials, or an endpoint that is not an http(s) address.
        """
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            if not environment.get(name):
                raise InputError(
                    f"object store: {name} is not set; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                    "and AWS_ENDPOINT_URL unless the store is Amazon S3"
                )
        url = environment.get("AWS_ENDPOINT_URL") or None
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise InputError(
                f"AWS_ENDPOINT_URL {_without_userinfo(url)!r}: write it as http://HOST:PORT or https://HOST"
            )
        return cls(
            url=url,
            region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
            access_key=environment["AWS_ACCESS_KEY_ID"],
            secret_key=environment["AWS_SECRET_ACCESS_KEY"],
            session_token=environment.get("AWS_SESSION_TOKEN") or None,
        )

    @property
    def address(self) -> str:
        """The endpoint as messages name it."""
        return "Amazon S3" if self.url is None else _without_userinfo(self.url)

    def conceal(self, message: str) -> str:
        """The message on one line, with the credentials blotted out, in case a client or server quoted them."""
        for secret in (self.secret_key, self.session_token, self.access_key):
            if secret:
                message = message.replace(secret, "***")
        return " ".join(message.split())

    def control_client(self, *, impatient: bool = False) -> S3Client:
        """A boto3 client; thread-safe.

        Args:
            impatient: give up on a dead endpoint within seconds, for checks; otherwise a store may restart under a run.
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
        given: dict[str, str] = {} if self.url is None else {"endpoint": self.url}
        if self.session_token is not None:
            given["session_token"] = self.session_token
        return S3Store(
            bucket,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            region=self.region,
            virtual_hosted_style_request=self.url is None,
            client_options=options,
            # Long enough for a store that restarts, short enough that a dead one fails the step within a minute.
            retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=60)},
            **given,  # type: ignore[arg-type]
        )


@functools.cache
def _session() -> boto3.session.Session:
    """One session a process: it parses the S3 service model once, which costs more than a request; not thread-safe."""
    return boto3.session.Session()


def _without_userinfo(url: str) -> str:
    """The URL without a user name and password somebody may have put into it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else url
