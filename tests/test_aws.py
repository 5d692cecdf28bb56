"""Where AWS credentials come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from flow.aws import credentials, s3_access
from flow.errors import ValidationError

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "s1"}
OTHERS = {"AWS_ACCESS_KEY_ID": "AKIA2", "AWS_SECRET_ACCESS_KEY": "s2", "AWS_SESSION_TOKEN": "t2"}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user with two profiles, one of which has no keys of its own."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = AKIA3\naws_secret_access_key = s%3\n\n"
        "[work]\naws_access_key_id=AKIA4\naws_secret_access_key=s4\naws_session_token=t4\n"
    )
    (tmp_path / ".aws/config").write_text(
        "[default]\nregion = eu-north-1\n[profile work]\nregion = eu-west-3\nendpoint_url = https://minio.example:9000\n"
        "[profile login]\nsso_session = corp\n[profile whole]\naws_access_key_id=AKIA5\naws_secret_access_key=s5\n"
    )
    return {"HOME": str(tmp_path)}


def test_keys_come_whole_from_the_task_then_the_shell_then_the_profile(home: dict[str, str]) -> None:
    assert credentials(KEYS, {**home, **OTHERS}) == {**KEYS, "AWS_REGION": "eu-north-1"}
    assert credentials({}, {**home, **OTHERS}) == {**OTHERS, "AWS_REGION": "eu-north-1"}
    assert credentials({}, home) == {
        "AWS_ACCESS_KEY_ID": "AKIA3", "AWS_SECRET_ACCESS_KEY": "s%3", "AWS_REGION": "eu-north-1",
    }  # fmt: skip
    assert credentials({}, {**home, "AWS_PROFILE": "work"})["AWS_SESSION_TOKEN"] == "t4"
    assert credentials({"AWS_PROFILE": "whole"}, {**home, "AWS_PROFILE": "work"})["AWS_ACCESS_KEY_ID"] == "AKIA5"
    assert credentials({"AWS_PROFILE": "whole"}, {**home, **OTHERS})["AWS_ACCESS_KEY_ID"] == "AKIA5"


def test_the_shared_files_may_lie_elsewhere(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("[default]\naws_access_key_id=AKIA6\naws_secret_access_key=s6\n")
    elsewhere = {**home, "AWS_SHARED_CREDENTIALS_FILE": "~/elsewhere", "AWS_CONFIG_FILE": str(tmp_path / "none")}
    assert credentials({}, elsewhere) == {"AWS_ACCESS_KEY_ID": "AKIA6", "AWS_SECRET_ACCESS_KEY": "s6"}


def test_the_region_and_the_endpoint_are_the_nearest_said(home: dict[str, str]) -> None:
    assert credentials({"AWS_DEFAULT_REGION": "r1"}, {**home, **KEYS, "AWS_REGION": "r2"})["AWS_REGION"] == "r2"
    assert "AWS_ENDPOINT_URL" not in s3_access(KEYS, home)
    work = {**home, "AWS_PROFILE": "work"}
    assert s3_access({}, work)["AWS_ENDPOINT_URL"] == "https://minio.example:9000"
    work["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9000"
    assert s3_access({}, work)["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"
    assert s3_access({"AWS_ENDPOINT_URL_S3": "http://s3:1"}, work)["AWS_ENDPOINT_URL"] == "http://s3:1"
    assert "AWS_ENDPOINT_URL" not in credentials({}, work)


def test_a_public_bucket_needs_no_keys_once_that_is_said(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "AWS_NO_SIGN_REQUEST": "YES", "AWS_REGION": "us-west-2"}
    assert s3_access({}, environ) == {"AWS_NO_SIGN_REQUEST": "1", "AWS_REGION": "us-west-2"}
    with pytest.raises(ValidationError, match="no AWS credentials"):
        s3_access({"AWS_NO_SIGN_REQUEST": "0"}, environ)


@pytest.mark.parametrize(
    ("env", "says", "advises"),
    [
        ({"AWS_PROFILE": "none"}, "no AWS credentials: none in .* profile `none`", "AWS_NO_SIGN_REQUEST=1"),
        ({"AWS_ACCESS_KEY_ID": "A"}, "half there: the task's `env` has no AWS_SECRET_ACCESS_KEY", ""),
        ({"AWS_SECRET_ACCESS_KEY": "A"}, "half there: the task's `env` has no AWS_ACCESS_KEY_ID", ""),
        ({"AWS_PROFILE": "login"}, "`login` has no keys but `sso_session`", "export-credentials --profile login"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "~/broken"}, "cannot read .*broken", ""),
        ({**KEYS, "AWS_ENDPOINT_URL": "minio:9000"}, "endpoint `minio:9000` is not a URL", "https://HOST"),
    ],
    ids=["nowhere", "no secret", "no id", "indirect", "broken file", "endpoint"],
)
def test_what_is_missing_is_said(home: dict[str, str], env: dict[str, str], says: str, advises: str) -> None:
    (Path(home["HOME"]) / "broken").write_bytes(b"aws_access_key_id\n\xff")
    with pytest.raises(ValidationError, match=says) as raised:
        s3_access(env, home)
    assert advises in " ".join(raised.value.suggestions)
