"""The request that made a clip, as the one text field that every container keeps: its comment.

ASCII JSON: characters that a container or an operating system might change are escaped, so any text comes back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vgen.errors import RequestError


def dump_comment(metadata: Mapping[str, Any]) -> str:
    """`metadata` as one line of ASCII JSON.

    Raises:
        RequestError: a value that JSON does not know, NaN and infinity among them.
    """
    try:
        return json.dumps(dict(metadata), ensure_ascii=True, allow_nan=False, separators=(", ", ": "))
    except (TypeError, ValueError) as error:
        raise RequestError(f"metadata cannot be written as JSON: {error}.") from None


def load_comment(text: str | None) -> dict[str, Any] | None:
    """The metadata in a comment; None for a comment that is not a JSON object."""
    if not text or not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
