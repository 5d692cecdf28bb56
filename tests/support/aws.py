"""AWS as it is over HTTP, on this machine: a moto server of the tests' own, with S3, ECR and IAM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.components import require
from tests.support.processes import end, wait_until

REGION = "us-east-1"
ANYBODY = {"AWS_ACCESS_KEY_ID": "AKIAANYBODY", "AWS_SECRET_ACCESS_KEY": "any-secret", "AWS_REGION": REGION}


@dataclass
class Aws:
    """The server at `url`. It takes any credentials until `ask_for_signatures`."""

    url: str
    log: Path
    earlier: int = 0  # bytes of the log that are other tests'

    @property
    def access(self) -> dict[str, str]:
        """Variables with which AWS's programs find this server and have credentials."""
        return {"AWS_ENDPOINT_URL": self.url, **ANYBODY}

    def client(self, service: str, access: Mapping[str, str] = ANYBODY) -> Any:
        """A boto3 client of "s3", "ecr", "iam"."""
        import boto3

        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")
        return boto3.session.Session(*map(access.get, names)).client(service, endpoint_url=self.url)

    def bucket(self, name: str, objects: Mapping[str, bytes]) -> Any:
        """Make it and fill it; a boto3 client of S3."""
        client = self.client("s3")
        client.create_bucket(Bucket=name)
        for key, content in objects.items():
            client.put_object(Bucket=name, Key=key, Body=content)
        return client

    def ask_for_signatures(self, *allowed: str) -> dict[str, str]:
        """From now on nothing goes without. The variables of a user who may do what is `allowed`, as "s3:Get*"."""
        iam, name = self.client("iam"), "user"
        iam.create_user(UserName=name)
        statement = {"Effect": "Allow", "Action": list(allowed), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=name, PolicyName="allowed", PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        self._post("reset-auth", b"0")
        keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        return {**self.access, **keys}

    def requests(self, pattern: str) -> int:
        """How many requests there were since `reset`, as `GET /bucket/key` in a regular expression."""
        return len(re.findall(pattern, re.sub(r"\x1b\[\d+m", "", self.log.read_bytes()[self.earlier :].decode())))

    def take_any_signature(self) -> None:
        """From now on nobody is asked for his rights."""
        self._post("reset-auth", b"inf")

    def reset(self) -> None:
        """Nothing is there any more, and any credentials are taken."""
        self.take_any_signature()
        self._post("reset", b"")
        self.earlier = self.log.stat().st_size

    def _post(self, what: str, body: bytes) -> None:
        plain = {"Content-Type": "text/plain"}  # a form's fields are not the body to it
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/{what}", body, plain)).close()


@contextmanager
def aws_server(folder: Path, host: str = "127.0.0.1") -> Iterator[Aws]:
    """The server on a free port, its log in `folder`; leaves the test out where moto is not installed."""
    require("moto", "AWS is talked to over HTTP")
    log = folder / "moto.log"
    environment = {
        **os.environ,
        "TMPDIR": str(folder),
        "AWS_DEFAULT_REGION": REGION,
        "MOTO_ALLOW_NONEXISTENT_REGION": "1",
    }
    with log.open("wb") as file:
        argv = [sys.executable, "-m", "moto.server", "-H", host, "-p", "0"]
        server = subprocess.Popen(argv, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)
    try:
        assert wait_until(lambda: "Running on" in log.read_text(), seconds=60), log.read_text()
        found = re.search(r"Running on (http://[\d.]+:\d+)", log.read_text())
        assert found
        yield Aws(found[1], log)
    finally:
        end([server.pid])
        server.wait(10)
