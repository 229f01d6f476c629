"""A Kubeflow Pipelines endpoint: kfp.Client with a login from the environment, time limits, and one clear line for every error.

Imports kfp only to connect.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.core.errors import InputError

TIMEOUTS = (5.0, 30.0)
"""Seconds to connect, and between two parts of a response."""
PAGE = 100
"""Items that a request lists at most."""
TOKEN, TOKEN_FILE, COOKIE, CA_FILE = "KFP_TOKEN", "KFP_TOKEN_FILE", "KFP_COOKIE", "KFP_CA_CERT"
POD_TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubernetes mounts a pod's service account token for Kubeflow Pipelines; variable and path are kfp's own."""
HINT = f"set {TOKEN} (a bearer token), {TOKEN_FILE} (a file with one) or {COOKIE} (NAME=VALUE, from the browser)"
REFUSALS = {
    401: ("not logged in", HINT),
    403: ("forbidden", "correct cluster.namespace, or request access to it"),
    404: ("not found", "correct the address"),
}
PASSING = (0, 408, 409, 429, 502, 503, 504)
"""Statuses after which a retry may help: no response, an overloaded server or gateway, a name that another process has just taken.
Not 500: Kubeflow answers so to requests that it can never serve."""
NOT_FOUND = 5
"""gRPC's code in Kubeflow's own 404; a proxy in front of it answers 404 without it."""


class EndpointError(InputError):
    """A request to the endpoint failed.

    Attributes:
        status: HTTP status; 0 without a response.
        passing: whether a retry may help.
        missing: whether Kubeflow itself reports that the requested object does not exist.
    """

    def __init__(self, message: str, status: int = 0, missing: bool = False) -> None:
        """Takes the line that the user reads."""
        super().__init__(message)
        self.status, self.passing, self.missing = status, status in PASSING, missing


@dataclass(frozen=True)
class Login:
    """Credentials for an endpoint; a file with a token is read for every request."""

    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    cookie: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Login:
        """Reads KFP_TOKEN, else KFP_TOKEN_FILE, KFP_COOKIE and KFP_CA_CERT; in a pod, its service account's token.

        Raises:
            InputError: an invalid value, or a file that cannot be read.
        """
        token, cookie = (environment.get(name, "").strip() or None for name in (TOKEN, COOKIE))
        for name, value in ((TOKEN, token), (COOKIE, cookie)):
            if value and len(value.splitlines()) > 1:  # http.client would quote the secret in its error
                raise InputError(f"{name} has a line break inside; set it to the secret alone")
        if cookie and "=" not in cookie:
            raise InputError(f"{COOKIE} must be NAME=VALUE, for example authservice_session=...")
        token_file = None if token else _file(environment, TOKEN_FILE) or _file(environment, POD_TOKEN_VARIABLE)
        if not token and token_file is None and POD_TOKEN.is_file():
            token_file = POD_TOKEN
        return cls(token, token_file, cookie, _file(environment, CA_FILE))

    @property
    def how(self) -> str:
        """The credentials in use, without the secrets."""
        token = f"the token in {TOKEN if self.token else self.token_file}" if self.token or self.token_file else ""
        cookie = f"the cookie in {COOKIE}" if self.cookie else ""
        return " and ".join(filter(None, (token, cookie))) or "no credentials"

    def arguments(self) -> dict[str, Any]:
        """Arguments for kfp.Client."""
        from kfp.client import ServiceAccountTokenVolumeCredentials

        path = self.token_file and str(self.token_file)
        return {
            "existing_token": self.token,
            "cookies": self.cookie,
            "credentials": ServiceAccountTokenVolumeCredentials(path=path) if path else None,
            "ssl_ca_cert": self.ca_file and str(self.ca_file),
        }

    def conceal(self, text: str) -> str:
        """The text on one line, with asterisks for secrets that a server quotes."""
        secrets = [self.token, self.cookie and self.cookie.partition("=")[2]]
        if self.token_file is not None and self.token_file.is_file():
            secrets.append(self.token_file.read_text(encoding="utf-8", errors="replace").strip())
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        return " ".join(text.split())


class KfpEndpoint:
    """The API of a Kubeflow Pipelines installation.

    Attributes:
        client: kfp.Client, whose requests have time limits and raise EndpointError.
        namespace: the namespace of experiments and runs; None if the installation is for a single user.
        version: the server's.
    """

    def __init__(self, url: str, login: Login, namespace: str) -> None:
        """Connects to http(s)://HOST[:PORT][/PATH] and reads the server's version.

        Raises:
            EndpointError: no connection, no permission, or not Kubeflow Pipelines.
            InputError: an invalid address.
        """
        self.url = check_url(url)
        self._login = login
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import urllib3
            from kfp import client

            # With a namespace, the constructor sends no request of its own, which would have no time limit. It takes the
            # namespace `kubeflow` for none given, hence the space; the real one is set below.
            self.client = client.Client(host=self.url, namespace=f"{namespace} ", **login.arguments())
        api = self.client._run_api.api_client
        # By default urllib3 makes four attempts of each request, and a dead endpoint takes four times as long.
        api.rest_client.pool_manager.connection_pool_kw["retries"] = urllib3.Retry(3, connect=0, read=0)
        self._request = api.rest_client.request
        api.rest_client.request = self._checked_request
        health = self.client.get_kfp_healthz()
        self.namespace = namespace if health.multi_user else None
        self.client._context_setting["namespace"] = self.namespace
        # kfp's model of this response lacks the version.
        self.version = str(json.loads(api.last_response.data).get("tag_name") or "unknown")

    def run_page(self, run_id: str) -> str:
        """Address of a run's page in the UI."""
        return f"{self.client._get_url_prefix().rstrip('/')}/#/runs/details/{run_id}"

    def listed(self, items: str, name: str, operation: str = "EQUALS", **scope: Any) -> list[Any]:
        """The `pipelines`, `pipeline_versions` or `runs` whose display name matches, one page of them."""
        predicate = {"operation": operation, "key": "display_name", "string_value": name}
        list_items = getattr(self.client, f"list_{items}")
        page = list_items(page_size=PAGE, filter=json.dumps({"predicates": [predicate]}), **scope)
        return getattr(page, items) or []

    def _checked_request(self, *arguments: Any, **named: Any) -> Any:
        """The request of kfp with time limits; the response must be JSON, not the page of a proxy or a login."""
        import urllib3
        from kfp_server_api import ApiException

        try:
            response = self._request(*arguments, **{**named, "_request_timeout": TIMEOUTS})
            json.loads(_text(response.data))
        except ApiException as error:
            raise self._refusal(error) if error.status else self._no_answer(error.reason) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._no_answer(getattr(error, "reason", None) or error) from None
        except ValueError:
            raise EndpointError(
                f"--endpoint {self.url}: the answer is not JSON, perhaps a login page (used {self._login.how}); {HINT}, or "
                "correct the address",
                401,
            ) from None
        return response

    def _no_answer(self, reason: object) -> EndpointError:
        return EndpointError(
            f"--endpoint {self.url}: no answer ({self._login.conceal(str(reason))}); start it, correct the address, or forward "
            "its port with `kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`"
        )

    def _refusal(self, error: Any) -> EndpointError:
        """The error of a response, with the server's message if it is not a web page."""
        status, body, missing = int(error.status), _text(error.body), False
        try:
            content = json.loads(body)
            body = str(content.get("message") or content.get("error") or content.get("error_message") or "")
            missing = status == 404 and content.get("code") == NOT_FOUND
        except (ValueError, AttributeError):
            body = "" if body.lstrip().startswith("<") else body
        may_pass = status in PASSING or status >= 500
        usual = "try again, or look at the log of its ml-pipeline pod" if may_pass else "correct what it names"
        what, advice = REFUSALS.get(status, ("failed", usual))
        why = f": {self._login.conceal(body)[:300]}" if body else ""
        message = f"--endpoint {self.url}: {what} ({status}, used {self._login.how}){why}; {advice}"
        return EndpointError(message, status, missing)


def _text(content: Any) -> str:
    return content.decode(errors="replace") if isinstance(content, bytes) else str(content or "")


def _file(environment: Mapping[str, str], name: str) -> Path | None:
    """The file that a variable names; None if it is not set."""
    if not environment.get(name):
        return None
    path = Path(environment[name])
    try:
        if path.read_bytes().strip():
            return path
    except OSError as error:
        raise InputError(f"{name}: {path} cannot be read ({error.strerror})") from None
    raise InputError(f"{name}: {path} is empty")


def check_url(url: str) -> str:
    """The address of an endpoint without what a browser appends; InputError if it is none."""
    url = url.partition("#")[0].partition("?")[0].rstrip("/")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # an IPv6 address without its second bracket
        valid = False
    if "@" in url:
        raise InputError(f"--endpoint: an address must not contain a password; {HINT}")
    if not valid:
        raise InputError(f"--endpoint {url}: write it as http://HOST:PORT or https://HOST/pipeline")
    return url
