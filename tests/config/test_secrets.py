from __future__ import annotations

import pytest

from moesearch.config.secrets import hide_secrets, mask_url


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql+psycopg://me:secret@db/x", "postgresql+psycopg://***@db/x"),
        ("no route to https://me:s/e@cret@host/path", "no route to https://***@host/path"),
        ("from https://host/path?api_token=secret&a=b on", "from https://host/path?api_token=***&a=b on"),
        ("sqlite:////home/me@work/runs/mlflow.db", "sqlite:////home/me@work/runs/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_a_secret_in_a_url_of_a_text_is_hidden_and_a_path_is_not(text: str, hidden: str) -> None:
    assert hide_secrets(text) == hidden


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:secret@host/database",
        "postgresql+psycopg://user:se@cret@host/database",
        "postgresql+psycopg://user:my secret@host/database",
        "postgresql+psycopg://user@host/database?password=secret&sslmode=require",
        "postgresql:user:secret@host",
        "postgresql:///user:secret@host",
        "post/gresql://user:secret@host?passfile=secret",
        "--storage=postgresql://user:secret@host",
        "no scheme//user:secret@host",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    assert "cret" not in mask_url(url)


def test_the_path_of_a_file_is_no_secret() -> None:
    assert mask_url("--storage=sqlite:////home/me@work/optuna.db") == "--storage=sqlite:////home/me@work/optuna.db"
