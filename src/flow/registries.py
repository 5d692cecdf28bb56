"""Registries that want a login of the hour: Amazon's, which gives one to whoever has AWS credentials."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from flow.aws import ID, SECRET, TOKEN, written_keys
from flow.errors import AuthenticationError, FlowError, ProviderError, ValidationError

# <account>.dkr.ecr.<region>.amazonaws.com; source: Amazon ECR User Guide, "Amazon ECR private registries".
_ECR = re.compile(r"(?P<host>\d+\.dkr\.ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?)/.")
# Codes with which AWS says no to who asks, and not to what is asked; source: "Common Error Types" of the ECR API.
_REFUSALS = re.compile(r"AccessDenied|UnrecognizedClient|InvalidClientToken|Signature|ExpiredToken|NotAuthorized|OptIn")
_HERE_BEFORE = "or pull it before: an image that the task's own machine has needs no login"
_SET = f"set {ID} and {SECRET}, in `env` of the task or in your shell, or AWS_PROFILE"


def wants_login(image: str) -> bool:
    """Whether `registry_login` would ask for one."""
    return bool(_ECR.match(image))


def registry_login(image: str, env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str] | None:
    """The login to an image's registry: registry, username, password; None where the engine's own login holds.

    Amazon's (ECR) is a token that lasts 12 hours. It is asked with the keys that `flow.aws.written_keys` finds, else in
    the ways that boto3 knows; AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_ECR are honoured. Raises ValidationError without
    credentials, AuthenticationError where AWS refuses them, ProviderError where it does not answer. Source:
    `GetAuthorizationToken` of the ECR API reference.
    """
    found = _ECR.match(image)
    if not found:
        return None
    username, _, password = _token(image, found["region"], env, environ).partition(":")
    return {"registry": found["host"], "username": username, "password": password}


def _token(image: str, region: str, env: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """What AWS answers: `AWS:` and the password."""
    try:
        from boto3 import Session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise ValidationError(
            f"`{image}` is in a private registry of AWS, and boto3, which asks it for a login, is not installed",
            suggestions=["install it: `pip install boto3`", _HERE_BEFORE],
        ) from error
    credentials = _credentials(env, environ)
    patience = Config(connect_timeout=10, read_timeout=20, retries={"total_max_attempts": 3})
    try:
        session = Session(region_name=region, **credentials)
        client = session.client("ecr", endpoint_url=_endpoint(env) or _endpoint(environ), config=patience)
        answer = client.get_authorization_token()
        return base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
    except (BotoCoreError, ClientError, LookupError, ValueError) as error:  # the last two: an endpoint that is no ECR
        raise _failure(image, error) from error


def _credentials(env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Any]:
    """What to make a session with; where no keys are written down, boto3 knows other ways, as single sign-on."""
    keys = written_keys(env, environ)
    if not keys:
        return {"profile_name": env.get("AWS_PROFILE") or environ.get("AWS_PROFILE")}
    return {
        "aws_access_key_id": keys[ID],
        "aws_secret_access_key": keys[SECRET],
        "aws_session_token": keys.get(TOKEN),
    }


def _endpoint(given: Mapping[str, str]) -> str | None:
    return given.get("AWS_ENDPOINT_URL_ECR") or given.get("AWS_ENDPOINT_URL") or None


def _failure(image: str, error: Any) -> FlowError:
    """What of AWS's words is ours to say; `error` is of botocore, which has no types."""
    kind = type(error).__name__
    answer = getattr(error, "response", {})
    code, status = (
        str(answer.get("Error", {}).get("Code", "")),
        answer.get("ResponseMetadata", {}).get("HTTPStatusCode"),
    )
    said = f"no login to the registry of `{image}`: {error}"
    if _REFUSALS.search(code) or status in (401, 403):
        return AuthenticationError(said, suggestions=[f"{_SET}; they need `ecr:GetAuthorizationToken`"])
    if re.search("Credential|Profile|Token|SSO|Login", kind):
        return ValidationError(said, suggestions=[_SET, _HERE_BEFORE])
    return ProviderError(
        said, suggestions=["does AWS answer, or what AWS_ENDPOINT_URL names? AWS_ENDPOINT_URL_ECR is for ECR alone"]
    )
