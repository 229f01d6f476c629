"""A Kubeflow Pipelines endpoint: kfp.Client with a login from the environment, time limits, and one clear line for every error.

Imports kfp only to connect.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.core.errors import InputError

SECONDS = (5.0, 30.0)
"""Limits for connecting, and between two parts of a response."""
PAGE = 100
TOKEN, TOKEN_FILE, COOKIE, CA_FILE = "KFP_TOKEN", "KFP_TOKEN_FILE", "KFP_COOKIE", "KFP_CA_CERT"
POD_TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubernetes mounts a pod's service account token for Kubeflow Pipelines; both are kfp's own names."""
HINT = (
    f"set {TOKEN} (a bearer token), {TOKEN_FILE} (a file with one) or {COOKIE} (NAME=VALUE, the browser's after login)"
)


class EndpointError(InputError):
    """A request to the endpoint failed.

    Attributes:
        status: HTTP status; 0 if there was no response.
        passing: whether a retry may help: no response, or a server error.
    """

    def __init__(self, message: str, status: int = 0, *, passing: bool = False) -> None:
        """Takes the line that the user reads."""
        super().__init__(message)
        self.status = status
        self.passing = passing


@dataclass(frozen=True)
class Login:
    """Credentials for an endpoint; the secrets stay out of the repr.

    Attributes:
        token: a bearer token, or None.
        token_file: a file with one, or None; it is read again for every request, so that a renewed token is used.
        cookie: NAME=VALUE, or None.
        ca_file: certificates to trust, or None for the usual ones.
    """

    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    cookie: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, pod_token: Path = POD_TOKEN) -> Login:
        """Reads KFP_TOKEN or KFP_TOKEN_FILE, KFP_COOKIE and KFP_CA_CERT; in a pod, its service account's token.

        Raises:
            InputError: an invalid value, or a file that cannot be read.
        """
        token, cookie = _secret(environment, TOKEN), _secret(environment, COOKIE)
        if token and environment.get(TOKEN_FILE):
            raise InputError(f"{TOKEN} and {TOKEN_FILE} are both set; unset one of them")
        if cookie and "=" not in cookie:
            raise InputError(
                f"{COOKIE} must be NAME=VALUE, for example authservice_session=...; its value is not shown"
            )
        token_file = _file(environment, TOKEN_FILE)
        if not token and token_file is None:
            token_file = _file(environment, POD_TOKEN_VARIABLE) or (pod_token if pod_token.is_file() else None)
        return cls(token or None, token_file, cookie or None, _file(environment, CA_FILE))

    @property
    def how(self) -> str:
        """The credentials in use, in words and without the secrets."""
        ways = [
            f"the token in {TOKEN}" if self.token else "",
            f"the token in {self.token_file}" if self.token_file else "",
            f"the cookie in {COOKIE}" if self.cookie else "",
        ]
        return " and ".join(way for way in ways if way) or "no credentials"

    def arguments(self) -> dict[str, Any]:
        """Arguments for kfp.Client."""
        arguments: dict[str, Any] = {"existing_token": self.token, "cookies": self.cookie}
        if self.token_file is not None:
            from kfp.client import ServiceAccountTokenVolumeCredentials

            arguments["credentials"] = ServiceAccountTokenVolumeCredentials(path=str(self.token_file))
        if self.ca_file is not None:
            arguments["ssl_ca_cert"] = str(self.ca_file)
        return arguments

    def conceal(self, text: str) -> str:
        """The text on one line, with secrets that a server may have quoted replaced by asterisks."""
        secrets = [self.token, self.cookie, self.cookie.partition("=")[2] if self.cookie else None]
        if self.token_file is not None and self.token_file.is_file():
            secrets.append(self.token_file.read_text(encoding="utf-8", errors="replace").strip())
        for secret in secrets:
            if secret:
                text = text.replace(secret, "***")
        return " ".join(text.split())


class KfpEndpoint:
    """The API of a Kubeflow Pipelines installation.

    Attributes:
        client: kfp.Client, whose requests have time limits and raise EndpointError.
        url: its address.
        namespace: namespace of experiments and runs; None if the installation is for a single user.
        multi_user: whether the installation has namespaces.
        version: the server's version.
    """

    def __init__(self, url: str, login: Login, namespace: str) -> None:
        """Connects and asks for the server's version.

        Args:
            url: http(s)://HOST[:PORT][/PATH].
            login: credentials.
            namespace: namespace of the configuration.

        Raises:
            EndpointError: no connection, no permission, or not Kubeflow Pipelines.
            InputError: not such an address.
        """
        self.url = _checked(url)
        self._login = login
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from kfp import client

            # Given a namespace, the constructor does not ask for the server's health, five times and without time limits.
            self.client = client.Client(host=self.url, namespace=f"{namespace} ", **login.arguments())
        api = self.client._run_api.api_client
        self._request = api.rest_client.request
        api.rest_client.request = self._checked_request
        health = self.client.get_kfp_healthz()
        self.multi_user = bool(health.multi_user)
        self.namespace = namespace if self.multi_user else None
        self.client._context_setting["namespace"] = self.namespace  # what its methods use unless given another
        # kfp's model of this response leaves the version out.
        self.version = str(json.loads(api.last_response.data).get("tag_name") or "unknown")

    def run_page(self, run_id: str) -> str:
        """Address of a run's page in the UI."""
        return f"{self.client._get_url_prefix().rstrip('/')}/#/runs/details/{run_id}"

    def named(self, list_items: Callable[..., Any], items: str, name: str, **more: Any) -> Any | None:
        """The item with this display name, or None."""
        found = self.matching(list_items, items, "EQUALS", name, **more)
        return next((item for item in found if item.display_name == name), None)

    def matching(
        self, list_items: Callable[..., Any], items: str, operation: str, name: str, **more: Any
    ) -> Iterator[Any]:
        """All items of a list method of kfp.Client whose display name matches, page by page."""
        predicate = {"operation": operation, "key": "display_name", "string_value": name}
        token = ""
        while True:
            page = list_items(page_token=token, page_size=PAGE, filter=json.dumps({"predicates": [predicate]}), **more)
            yield from getattr(page, items) or []
            token = page.next_page_token or ""
            if not token:
                return

    def _checked_request(self, *arguments: Any, **named: Any) -> Any:
        """Kfp's request with time limits; its response is JSON, whatever proxy or login page there is on the way."""
        import urllib3
        from kfp_server_api import ApiException

        at = f"--endpoint {self.url}"
        try:
            response = self._request(*arguments, **{**named, "_request_timeout": SECONDS})
        except ApiException as error:
            raise self._refusal(error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            why = self._login.conceal(str(getattr(error, "reason", None) or error))
            raise EndpointError(
                f"{at}: no answer ({why}); start it, correct the address, or forward its port with "
                "`kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`",
                passing=True,
            ) from None
        text = _text(response.data)
        if not text.lstrip().startswith(("{", "[")):
            raise EndpointError(
                f"{at}: answers with a web page, perhaps of a login, instead of the API (used {self._login.how}); {HINT}, or "
                "correct the address",
                401,
            )
        try:
            json.loads(text)
        except ValueError:
            raise EndpointError(f"{at}: its answer was cut short; try again", passing=True) from None
        return response

    def _refusal(self, error: Any) -> EndpointError:
        status, message = int(error.status or 0), self._message(error.body)
        at, why = f"--endpoint {self.url}", f": {message}" if message else ""
        if status == 0:
            return EndpointError(f"{at}: no connection ({self._login.conceal(str(error.reason))})", passing=True)
        if status == 401:
            return EndpointError(f"{at}: not logged in (401, used {self._login.how}); {HINT}", status)
        if status == 403:
            return EndpointError(
                f"{at}: forbidden (403, used {self._login.how}){why}; correct cluster.namespace, or ask for access to it",
                status,
            )
        if status == 404:
            return EndpointError(f"{at}: not found (404){why}; correct the address, or what it names", status)
        passing = status in (408, 429) or status >= 500
        advice = "try again, or look at the log of its ml-pipeline pod" if passing else "correct what it names"
        return EndpointError(f"{at}: answers {status}{why}; {advice}", status, passing=passing)

    def _message(self, body: Any) -> str:
        """The server's message, short and without secrets; empty for a web page."""
        text = _text(body)
        try:
            content = json.loads(text)
            text = str(content.get("message") or content.get("error") or content.get("error_message") or "")
        except (ValueError, AttributeError):
            text = "" if text.lstrip().startswith("<") else text
        text = self._login.conceal(text)
        return text if len(text) <= 300 else f"{text[:300]}..."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps kfp.Client from printing links."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _text(content: Any) -> str:
    return content.decode(errors="replace") if isinstance(content, bytes) else str(content or "")


def _secret(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "").strip()
    if any(character in value for character in "\r\n") or (name == TOKEN and " " in value):
        raise InputError(
            f"{name} has a space or line break inside; set it to the secret alone (its value is not shown)"
        )
    return value


def _file(environment: Mapping[str, str], name: str) -> Path | None:
    """The file that a variable names; None if it is not set."""
    if not environment.get(name):
        return None
    path = Path(environment[name])
    try:
        if not path.read_text(encoding="utf-8", errors="replace").strip():
            raise InputError(f"{name}: {path} is empty")
    except OSError as error:
        raise InputError(f"{name}: {path} cannot be read ({error.strerror})") from None
    return path


def _checked(url: str) -> str:
    invalid = InputError(f"--endpoint {url.rpartition('@')[2]}: write it as http://HOST:PORT or https://HOST/pipeline")
    try:
        parts = urlsplit(url)
    except ValueError:  # an IPv6 address without its second bracket
        raise invalid from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise invalid
    if parts.username or parts.password:
        raise InputError(f"--endpoint: an address must not contain a password; {HINT}")
    if parts.query or parts.fragment:
        raise InputError(f"--endpoint {url.partition('?')[0].partition('#')[0]}: leave out what follows ? or #")
    return url.rstrip("/")
