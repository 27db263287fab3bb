"""What all sections of a configuration have in common.

A rule that holds across fields stands in ``broken_rules`` of the section that it is about, once, for the base of a
study and for every proposal alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

BROKEN_RULE = "broken_rule"
"""Type of the pydantic error that carries the sentences of ``broken_rules``."""

# A lane knob changes no tensor shape of another lane, so trials that differ in it train side by side in one model.
# A shape knob starts another shape family. The mark is read by `is_lane_field`, `--dry-run` and the reference.
LANE = Field(json_schema_extra={"lane": True})


def _whole(value: object) -> object:
    """YAML reads 1e6 as a real number; where a whole number is due, it is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)


class Section(BaseModel):
    """Base of all sections: frozen, strict (a bool is no number, "8" is text), and a misspelt field is an error."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def broken_rules(self) -> Iterator[tuple[str, str]]:
        """Rules across fields that do not hold: (section they are about, or "" for this one; sentence)."""
        return iter(())

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = list(self.broken_rules())
        if broken:
            text = "; ".join(f"{section}: {sentence}" if section else sentence for section, sentence in broken)
            raise PydanticCustomError(BROKEN_RULE, "{text}", {"text": text, "broken": broken})
        return self
