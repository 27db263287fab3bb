"""Short names of configurations: ``E16 k2 xavier_normal noise-off``."""

from __future__ import annotations

from collections.abc import Mapping


def config_label(params: Mapping[str, object]) -> str:
    """A name for a configuration from its knobs (dotted path -> value), in the order given.

    The words of the field are short; any other knob says its own name: ``lr=0.003``.
    """
    return " ".join(_knob_label(path, value) for path, value in params.items()) or "base"


def format_value(value: object) -> str:
    """A knob's value as a person writes it."""
    match value:
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:.4g}"
        case None:
            return "none"
        case _:
            return str(value)


def _knob_label(path: str, value: object) -> str:
    text = format_value(value)
    match path:
        case "moe.num_experts":
            return f"E{text}"
        case "moe.top_k":
            return f"k{text}"
        case "moe.init":
            return text
        case "moe.noise":
            return f"noise-{text}"
        case _:
            return f"{path.rpartition('.')[2]}={text}"
