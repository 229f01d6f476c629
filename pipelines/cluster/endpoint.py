"""A Kubeflow Pipelines endpoint: requests with time limits, and what is no answer as one clear line. Imports kfp to connect.

kfp.Client brings the login; requests go through the generated API that it is made of, which alone takes time limits.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from components.core.errors import InputError
from pipelines.cluster.login import HINT, Login

SECONDS = (5.0, 30.0)
"""Until a connection stands, and between two pieces of an answer."""
PAGE = 100


class EndpointError(InputError):
    """The endpoint did not do as asked.

    Attributes:
        status: of the answer; 0 where there was none.
        passing: whether trying again may help: no answer, or a server in trouble.
    """

    def __init__(self, message: str, status: int = 0, *, passing: bool = False) -> None:
        """Takes the line that the user reads."""
        super().__init__(message)
        self.status = status
        self.passing = passing


class Endpoint:
    """The API of one Kubeflow Pipelines.

    Attributes:
        url: as given, without a slash at its end.
        namespace: whose experiments and runs are meant; None where the deployment knows no namespaces.
        multi_user: whether it knows namespaces.
        version: of the server, as it says.
        runs: the generated API of runs.
        experiments: of experiments.
        pipelines: of pipelines.
        uploads: of uploads.
    """

    def __init__(self, url: str, login: Login, namespace: str) -> None:
        """Connects, and asks for the server's version.

        Args:
            url: http(s)://HOST[:PORT][/PATH].
            login: who we are.
            namespace: of the configuration.

        Raises:
            EndpointError: it does not answer, refuses us, or is something else.
            InputError: not such an address.
        """
        self.url = _checked(url)
        self._login = login
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            import kfp_server_api
            from kfp import client

            self._kfp = kfp_server_api
            # Any namespace but its default keeps the constructor from asking for the server's health, five times, without limits.
            made = client.Client(host=self.url, namespace=f"{namespace} ", **login.arguments())
        self._api = made._run_api.api_client
        self._ui = made._get_url_prefix().rstrip("/")
        self.runs = kfp_server_api.RunServiceApi(self._api)
        self.experiments = kfp_server_api.ExperimentServiceApi(self._api)
        self.pipelines = kfp_server_api.PipelineServiceApi(self._api)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(self._api)
        health = self.call(kfp_server_api.HealthzServiceApi(self._api).healthz_service_get_healthz)
        self.multi_user = bool(health.multi_user)
        self.namespace = namespace if self.multi_user else None
        # The generated model of this answer leaves the version out.
        self.version = str(json.loads(self._api.last_response.data).get("tag_name") or "unknown")

    @property
    def models(self) -> Any:
        """The generated models."""
        return self._kfp

    def of_namespace(self) -> dict[str, str]:
        """The argument that names the namespace, which a deployment without namespaces refuses."""
        return {"namespace": self.namespace} if self.namespace else {}

    def run_page(self, run_id: str) -> str:
        """Address of a run's page in the UI."""
        return f"{self._ui}/#/runs/details/{run_id}"

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """One request.

        Raises:
            EndpointError: no answer, not the expected one, or one that says no.
        """
        import urllib3

        try:
            answer = function(*arguments, _request_timeout=SECONDS, **named)
        except self._kfp.ApiException as error:
            raise self._refusal(error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            why = self._login.conceal(str(getattr(error, "reason", None) or error))
            raise EndpointError(
                f"--endpoint {self.url}: no answer ({why}); start it, correct the address, or forward its port with "
                "`kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`",
                passing=True,
            ) from None
        except ValueError as error:  # an answer that is none of the API's, or not even JSON of the right form
            raise EndpointError(
                f"--endpoint {self.url}: its answer is not one of Kubeflow Pipelines ({type(error).__name__}); correct the address"
            ) from None
        data = self._api.last_response.data
        text = data.decode(errors="replace") if isinstance(data, bytes) else str(data or "")
        if not text.lstrip().startswith(("{", "[")):
            raise self._page()
        try:
            json.loads(text)  # the generated API makes an empty answer of what is none
        except ValueError:
            raise EndpointError(f"--endpoint {self.url}: its answer was cut short; try again", passing=True) from None
        return answer

    def every(self, function: Callable[..., Any], items: str, **named: Any) -> Iterator[Any]:
        """All items of a list, page by page."""
        token = ""
        while True:
            answer = self.call(function, page_token=token, page_size=PAGE, **named)
            yield from getattr(answer, items) or []
            token = answer.next_page_token or ""
            if not token:
                return

    def _page(self) -> EndpointError:
        return EndpointError(
            f"--endpoint {self.url}: answers with a web page, perhaps of a login, instead of the API (used {self._login.how}); "
            f"{HINT}, or correct the address",
            401,
        )

    def _refusal(self, error: Any) -> EndpointError:
        status, said = int(error.status or 0), self._said(error.body)
        at, why = f"--endpoint {self.url}", f": {said}" if said else ""
        if status == 0:
            return EndpointError(f"{at}: no connection ({self._login.conceal(str(error.reason))})", passing=True)
        if status == 401:
            return EndpointError(f"{at}: does not know who we are (401, used {self._login.how}); {HINT}", status)
        if status == 403:
            return EndpointError(
                f"{at}: forbidden (403, used {self._login.how}){why}; correct cluster.namespace, or have yourself let in",
                status,
            )
        if status == 404:
            return EndpointError(
                f"{at}: there is no such thing (404){why}; correct the address, or what it names", status
            )
        passing = status in (408, 429) or status >= 500
        advice = "try again, or look at the log of its ml-pipeline pod" if passing else "correct what it names"
        return EndpointError(f"{at}: answers {status}{why}; {advice}", status, passing=passing)

    def _said(self, body: Any) -> str:
        """What the server wrote, short and without secrets; nothing of a web page."""
        text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
        try:
            told = json.loads(text)
            text = str(told.get("message") or told.get("error") or told.get("error_message") or "")
        except (ValueError, AttributeError):
            text = "" if text.lstrip().startswith("<") else text
        text = self._login.conceal(text)
        return text if len(text) <= 300 else f"{text[:300]}..."


def _checked(url: str) -> str:
    other = InputError(f"--endpoint {url.rpartition('@')[2]}: write it as http://HOST:PORT or https://HOST/pipeline")
    try:
        parts = urlsplit(url)
    except ValueError:  # half of the brackets of an IPv6 address
        raise other from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise other
    if parts.username or parts.password:
        raise InputError(f"--endpoint: a password does not belong into an address; {HINT}")
    if parts.query or parts.fragment:
        raise InputError(f"--endpoint {url.partition('?')[0].partition('#')[0]}: leave out what follows ? or #")
    return url.rstrip("/")
