"""Values -> YAML text, the way back from the loader."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML


def dump_yaml(values: Mapping[str, Any], comment: str = "") -> str:
    """YAML 1.2 text of plain values (mappings, lists, text, numbers, booleans, None), in the order given.

    Each line of ``comment`` stands before it behind a ``#``.
    """
    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = False
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    # The round-trip dumper writes nothing for None; the word is clearer to a person.
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    # 1e-08 without a point is a number in YAML 1.2, but text to readers of YAML 1.1.
    yaml.representer.add_representer(float, _represent_float)
    stream = io.StringIO()
    yaml.dump(dict(values), stream)
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + stream.getvalue()


def _represent_float(representer: Any, number: float) -> Any:
    text = repr(number)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return representer.represent_scalar("tag:yaml.org,2002:float", text)
