"""What holds a secret is not shown."""

from __future__ import annotations

import pytest

from flow.masking import is_secret, masked, masked_text


@pytest.mark.parametrize("name", ["API_KEY", "aws_secret_access_key", "HF_TOKEN", "DbPassword", "SECRET", "x.token"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["LR", "PATH", "WANDB_RUN_NAME", "", "PASS", "K_E_Y"])
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_an_environment_is_shown_without_its_secrets() -> None:
    shown = masked({"A": "1", "API_KEY": "hush", "TOKEN": ""})
    assert shown == {"A": "1", "API_KEY": "***", "TOKEN": ""}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("API_KEY: hush", "API_KEY: ***"),
        ('  "hf_token" : "hush"  # really', '  "hf_token" : ***'),
        ("export DB_PASSWORD=hush; ls", "export DB_PASSWORD=***"),
        ("env: {A: 1, MY_SECRET: hush, B: 2}", "env: {A: 1, MY_SECRET: ***"),
        ("A: 1\nTOKEN: hush\nB: 2", "A: 1\nTOKEN: ***\nB: 2"),
        ("ssh_keys: [mine]", "ssh_keys: [mine]"),
        ("command: python train.py", "command: python train.py"),
        ("API_KEY:", "API_KEY:"),
    ],
)
def test_text_is_shown_without_its_secrets(text: str, shown: str) -> None:
    assert masked_text(text) == shown
