"""Who we are at a Kubeflow Pipelines endpoint: a token or a cookie, from the environment alone. Imports kfp only when asked to.

A token file is read again for every request, so that a token that is renewed under a waiting command stays good.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.core.errors import InputError

TOKEN, TOKEN_FILE, COOKIE, CA_FILE = "KFP_TOKEN", "KFP_TOKEN_FILE", "KFP_COOKIE", "KFP_CA_CERT"
POD_TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
POD_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
"""Where Kubernetes projects a pod's service account token for Kubeflow Pipelines; kfp's own names for both."""

HINT = (
    f"set {TOKEN} (a bearer token), {TOKEN_FILE} (a file that holds one) or {COOKIE} (NAME=VALUE, as the browser has it after "
    "login)"
)


@dataclass(frozen=True)
class Login:
    """What proves who we are; the secrets stay out of its repr.

    Attributes:
        token: a bearer token; None for none.
        token_file: a file that holds one; None for none.
        cookie: NAME=VALUE; None for none.
        ca_file: certificates that sign the endpoint's; None for the usual ones.
    """

    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    cookie: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, pod_token: Path | None = None) -> Login:
        """Reads KFP_TOKEN or KFP_TOKEN_FILE, KFP_COOKIE and KFP_CA_CERT; in a pod, its service account's token.

        Args:
            environment: the variables.
            pod_token: where a pod has its token; None for Kubeflow's usual place.

        Raises:
            InputError: a variable whose value cannot be one, or whose file cannot be read.
        """
        token, cookie = _secret(environment, TOKEN), _secret(environment, COOKIE)
        named = environment.get(TOKEN_FILE) or ""
        if token and named:
            raise InputError(f"{TOKEN} and {TOKEN_FILE} are both set; unset one of them")
        if cookie and "=" not in cookie:
            raise InputError(
                f"{COOKIE} must be NAME=VALUE, for example authservice_session=...; its value is not shown"
            )
        token_file = Path(named) if named else None
        if not token and token_file is None:
            usual = Path(environment.get(POD_TOKEN_VARIABLE) or pod_token or POD_TOKEN)
            named = POD_TOKEN_VARIABLE if environment.get(POD_TOKEN_VARIABLE) else ""
            token_file = usual if named or usual.is_file() else None
        else:
            named = TOKEN_FILE
        if token_file is not None:
            _check_file(token_file, named or "token")
        ca_file = Path(environment[CA_FILE]) if environment.get(CA_FILE) else None
        if ca_file is not None:
            _check_file(ca_file, CA_FILE)
        return cls(token or None, token_file, cookie or None, ca_file)

    @property
    def how(self) -> str:
        """Which of them is used, in words without secrets."""
        ways = [
            f"the token in {TOKEN}" if self.token else "",
            f"the token in {self.token_file}" if self.token_file else "",
            f"the cookie in {COOKIE}" if self.cookie else "",
        ]
        return " and ".join(way for way in ways if way) or "no credentials"

    def arguments(self) -> dict[str, Any]:
        """Of kfp.Client."""
        given: dict[str, Any] = {"existing_token": self.token, "cookies": self.cookie}
        if self.token_file is not None:
            from kfp.client import ServiceAccountTokenVolumeCredentials

            given["credentials"] = ServiceAccountTokenVolumeCredentials(path=str(self.token_file))
        if self.ca_file is not None:
            given["ssl_ca_cert"] = str(self.ca_file)
        return given

    def conceal(self, text: str) -> str:
        """The text on one line, with the secrets blotted out, in case a server quoted them."""
        secrets = [self.token, self.cookie, self.cookie.partition("=")[2] if self.cookie else None]
        if self.token_file is not None and self.token_file.is_file():
            secrets.append(self.token_file.read_text(encoding="utf-8", errors="replace").strip())
        for secret in secrets:
            if secret:
                text = text.replace(secret, "***")
        return " ".join(text.split())


def _secret(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "").strip()
    if any(character in value for character in "\r\n") or (name == TOKEN and " " in value):
        raise InputError(
            f"{name} has a space or line break inside; set it to the secret alone (its value is not shown)"
        )
    return value


def _check_file(path: Path, name: str) -> None:
    try:
        content = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise InputError(f"{name}: {path} cannot be read ({error.strerror})") from None
    if not content:
        raise InputError(f"{name}: {path} is empty")
