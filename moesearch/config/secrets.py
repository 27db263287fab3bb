"""Secrets of URLs, kept out of messages, logs, reports and MLflow: users, passwords, and keys among the parameters."""

from __future__ import annotations

import re

_HIDDEN = "***"
# Greedy, since a password may hold an "@" that nobody escaped: what stands before the last one is hidden.
_USER_INFO = re.compile(r"(?P<scheme>[\w+.%-]*)(?P<slashes>://+)\S*@")
_USER_INFO_OF_ALL = re.compile(r"(?P<scheme>[^/:]*)(?P<slashes>:/*|//+).*@", re.DOTALL)
_PARAMETER = r"(?P<name>[?&][^=&\s]*(?:pass|pwd|secret|token|key|credential)[^=&\s]*=)"
_VALUE = re.compile(rf"{_PARAMETER}[^&\s]*", re.IGNORECASE)
_VALUE_OF_ALL = re.compile(rf"{_PARAMETER}[^&]*", re.IGNORECASE)
_FILES = ("sqlite", "file")
"""Schemes of paths, in which an "@" is a letter like any other."""


def hide_secrets(text: str) -> str:
    """``text`` with the user, the password and the secret parameters of every URL in it covered up."""
    return _VALUE.sub(rf"\g<name>{_HIDDEN}", _USER_INFO.sub(_without_user, text))


def mask_url(url: str) -> str:
    """The same of a text that is one URL, or was meant to be: whatever stands before its last "@" is covered up."""
    return _VALUE_OF_ALL.sub(rf"\g<name>{_HIDDEN}", _USER_INFO_OF_ALL.sub(_without_user, url))


def _without_user(match: re.Match[str]) -> str:
    scheme = match["scheme"]
    is_path = scheme.rpartition("=")[2].startswith(_FILES)  # "--storage=sqlite:///..." is one argument
    return match[0] if is_path else f"{scheme}{match['slashes']}{_HIDDEN}@"
