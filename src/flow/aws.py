"""AWS credentials, as its own programs look for them: the task's variables, the shell's, the shared files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from urllib.parse import urlsplit

from flow.errors import ValidationError

ID, SECRET, TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
REGION, ENDPOINT, UNSIGNED = "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_NO_SIGN_REQUEST"
# Ways to come to credentials that a profile may name and only AWS's own program can go.
_INDIRECT = ("sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file")


def credentials(env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The `written_keys`, and AWS_REGION where one is said. Raises ValidationError where there are no keys."""
    profile = _Profile(env, environ)
    region = profile.variable(REGION) or profile.variable("AWS_DEFAULT_REGION") or profile.value("region")
    found = written_keys(env, environ)
    if not found:
        raise profile.without_keys()
    return {**found, **({REGION: region} if region else {})}


def written_keys(env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and maybe AWS_SESSION_TOKEN, all from one place; {} where none has any.

    The places: the task's own `env`, or the profile that it names; `environ`, the shell that submits; the profile of
    the shared files. Raises ValidationError where one of the two is missing, or a file cannot be read.
    Source: AWS SDKs and Tools Reference Guide, "Configuration and authentication settings".
    """
    own = _keys(env, "the task's `env`")
    if own or env.get("AWS_PROFILE"):
        return own or _Profile(env, environ).keys()
    return _keys(environ, "the environment") or _Profile(env, environ).keys()


def s3_access(env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What a machine needs to read S3: the `credentials`, and AWS_ENDPOINT_URL where S3 is not AWS's own.

    AWS_NO_SIGN_REQUEST=1 takes the place of credentials: public buckets are read without, and only when that is said.
    Raises ValidationError where there is neither, or the endpoint is no URL.
    """
    profile = _Profile(env, environ)
    endpoint = profile.variable("AWS_ENDPOINT_URL_S3") or profile.variable(ENDPOINT) or profile.value("endpoint_url")
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
        raise ValidationError(
            f"the S3 endpoint `{endpoint}` is not a URL",
            suggestions=["write it as `https://HOST` or `http://HOST:PORT` in AWS_ENDPOINT_URL"],
        )
    if profile.variable(UNSIGNED).lower() in ("1", "true", "yes"):
        region = profile.variable(REGION) or profile.variable("AWS_DEFAULT_REGION")
        found = {UNSIGNED: "1", **({REGION: region} if region else {})}
    else:
        try:
            found = credentials(env, environ)
        except ValidationError as error:
            public = f"for a public bucket, set `{UNSIGNED}=1`"
            raise ValidationError(error.message, suggestions=[*error.suggestions, public]) from None
    return {**found, **({ENDPOINT: endpoint} if endpoint else {})}


def _keys(variables: Mapping[str, str], where: str) -> dict[str, str]:
    """Those of one place; {} where it has none."""
    found = {name: variables[name].strip() for name in (ID, SECRET, TOKEN) if variables.get(name, "").strip()}
    missing = [name for name in (ID, SECRET) if name not in found]
    if len(missing) == 1:
        raise ValidationError(
            f"AWS credentials are half there: {where} has no {missing[0]}", suggestions=[f"set {ID} and {SECRET} there"]
        )
    return {} if missing else found


class _Profile:
    """The chosen profile of the shared files; both may be missing."""

    def __init__(self, env: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._variables = {**environ, **{name: value for name, value in env.items() if value}}
        self.name = self.variable("AWS_PROFILE") or "default"
        self._credentials = self._section("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", self.name)
        in_config = "default" if self.name == "default" else f"profile {self.name}"
        self._config = self._section("AWS_CONFIG_FILE", "~/.aws/config", in_config)

    def variable(self, name: str) -> str:
        return self._variables.get(name, "").strip()

    def value(self, name: str) -> str:
        return self._credentials.get(name) or self._config.get(name) or ""

    def keys(self) -> dict[str, str]:
        return _keys({name: self.value(name.lower()) for name in (ID, SECRET, TOKEN)}, f"profile `{self.name}`")

    def without_keys(self) -> ValidationError:
        """Why there are none, of a profile that has none."""
        named = f" --profile {self.name}" if self.variable("AWS_PROFILE") else ""
        export = f'`eval "$(aws configure export-credentials{named} --format env)"`'
        indirect = next((name for name in _INDIRECT if self.value(name)), None)
        if indirect:
            return ValidationError(
                f"the AWS profile `{self.name}` has no keys but `{indirect}`", suggestions=[f"get keys with {export}"]
            )
        return ValidationError(
            f"no AWS credentials: none in the task's `env`, the environment, or profile `{self.name}` of ~/.aws",
            suggestions=[f"set {ID} and {SECRET}, or run `aws configure`"],
        )

    def _section(self, variable: str, usual: str, section: str) -> Mapping[str, str]:
        path = self.variable(variable) or usual
        path = re.sub("^~(?=/)", lambda _: self.variable("HOME"), path)
        parser = ConfigParser(interpolation=None, strict=False, default_section="")
        try:
            parser.read(path, encoding="utf-8")
        except (ConfigParserError, UnicodeDecodeError) as error:
            raise ValidationError(f"cannot read `{path}`: {' '.join(str(error).split())}") from None
        return parser[section] if parser.has_section(section) else {}
