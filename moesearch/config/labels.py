"""Short names of configurations, the same in the terminal, the report and the trackers."""

from __future__ import annotations

from collections.abc import Mapping


def config_label(params: Mapping[str, object]) -> str:
    """A name for a configuration from its knobs (dotted path -> value): ``E16 k2 xavier noise-off``.

    The words of the field are short; any other knob says its own name: ``lr=0.003``.
    """
    return " ".join(_word(path, value) for path, value in params.items()) or "base"


def running_label(params: Mapping[str, object]) -> str:
    """A name for what is being trained; a trial has none before the sampler has said what it tries."""
    return config_label(params) if params else "being chosen"


def short_value(value: object) -> str:
    """A knob's value in few characters: ``on``, ``0.001``, ``none``."""
    match value:
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:.3g}"
        case None:
            return "none"
        case _:
            return str(value)


def _word(path: str, value: object) -> str:
    match path:
        case "control":
            return f"{value} control"
        case "moe.num_experts":
            return f"E{short_value(value)}"
        case "moe.top_k":
            return f"k{short_value(value)}"
        case "moe.init":
            # The normal form of a scheme is the usual one, so only the uniform form says which it is.
            return str(value).removesuffix("_normal").replace("_", "-")
        case "moe.noise":
            return f"noise-{short_value(value)}"
        case _:
            return f"{path.rpartition('.')[2]}={short_value(value)}"
