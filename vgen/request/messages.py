"""pydantic's findings, worded: each names the field, its value, the legal range and the nearest legal value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from vgen.errors import nearest


def worded(error: ValidationError, model: type[BaseModel], what: str = "a field of a request") -> str:
    """All findings of a validation as sentences.

    Args:
        error: of pydantic.
        model: that was validated; its JSON schema has the ranges.
        what: a name that the model has, for "'x' is not ...".
    """
    schema = model.model_json_schema()
    findings = error.errors(include_url=False)
    return " ".join(dict.fromkeys(_sentence(finding, schema, model, what) for finding in findings))


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """ "'widht' is not a field of a request: did you mean 'width'?" """
    known = sorted(known)
    return f"{name!r} is not {what}: " + (nearest(name, known) or f"known are {', '.join(known)}.")


def _sentence(finding: Any, schema: dict[str, Any], model: type[BaseModel], what: str) -> str:
    kind, value, path = finding["type"], finding["input"], finding["loc"]
    field = next((str(part) for part in reversed(path) if isinstance(part, str) and part not in ("one", "each")), "")
    if kind == "vgen":
        return str(finding["msg"])
    if kind == "extra_forbidden":
        return unknown(field, model.model_fields, what)
    if kind == "missing":
        return f"{field} is missing."
    rules = _at(schema, path)
    if "enum" in rules:
        known = rules["enum"]
        hint = nearest(str(value), known)
        return f"{field}={value!r:.80} is not known: use {_listed(known)}{f'; {hint}' if hint else '.'}"
    if rules.get("type") in ("integer", "number"):
        return _number(field, value, rules)
    if rules.get("type") == "array":
        forms = {"integer": "whole numbers; use for instance 4 or 3,4", "array": "lists", "string": "one or more texts"}
        form = forms.get(rules.get("items", {}).get("type"), "one or more values")
        return f"{field}={value!r:.80} is not a list of {form}."
    return f"{field}={value!r:.80} is not valid: {finding['msg']}."


def _number(field: str, value: Any, rules: dict[str, Any]) -> str:
    low, high, whole = rules.get("minimum", 0), rules.get("maximum", math.inf), rules["type"] == "integer"
    span = f"{_spelled(low)} to {_spelled(high)}" if high < math.inf else f"{_spelled(low)} or more"
    parsed = value
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        try:
            parsed = float(value) if isinstance(value, str) and len(value) <= 400 else math.nan
        except ValueError:
            parsed = math.nan
    if whole and low <= parsed <= high and parsed != int(parsed):
        return f"{field}={value} is not a whole number; use {math.floor(parsed)} or {math.ceil(parsed)}."
    if math.isnan(parsed):
        noun = "a whole number" if whole else "a number"
        return f"{field}={value!r:.40} is not {noun}; use one from {span}, for instance {_spelled(max(low, 0))}."
    nearest = low if parsed < low else high
    outside = f"is outside {span}" if high < math.inf else f"must be {span}"
    return f"{field}={value!s:.40} {outside}; the nearest is {_spelled(nearest)}."


def _spelled(number: float) -> str:
    return f"{number}" if isinstance(number, int) else f"{number:g}"


def _listed(words: list[str]) -> str:
    return " or ".join(", ".join(words).rsplit(", ", 1))


def _at(schema: dict[str, Any], path: Iterable[Any]) -> dict[str, Any]:
    """The part of a JSON schema that describes a value, by the place that pydantic names."""
    here = schema
    for part in (*path, None):
        if "$ref" in here:
            here = schema["$defs"][here["$ref"].rpartition("/")[2]]
        if isinstance(part, int):
            here = here.get("items", {})
        elif part in ("one", "each"):
            here = here["oneOf"][part == "each"]
        elif part is not None:
            here = here.get("properties", {}).get(part, {})
        here = next((kind for kind in here.get("anyOf", ()) if kind.get("type") != "null"), here)
    if "const" in here:
        return {**here, "enum": [here["const"]]}
    return here
