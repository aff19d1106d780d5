"""Write docs/settings.md from the declaration of the settings: `python docs/scripts/make_settings.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vgen.request.knobs import plain_type
from vgen.request.request import GenerateRequest
from vgen.request.settings import PANELS

PAGE = Path(__file__).resolve().parents[1] / "settings.md"

HEAD = """# Settings of a clip

<!-- Made by docs/scripts/make_settings.py from vgen/request/settings.py: do not edit. -->

Each is a field of `GenerateRequest` and of the JSON in an output's metadata (`vgen info`); those with an option are
taken by the commands, and those of sampling and coding by every pipeline's call in Python. What is left out comes from
the memory plan, the LoRAs, the model, its scheduler and its convention, in this order.
`GenerateRequest.model_json_schema()` says the same as a JSON schema.
"""


def page() -> str:
    """The whole page."""
    schema = GenerateRequest.model_json_schema()["properties"]
    lines = [HEAD.rstrip()]
    for panel in PANELS:
        lines += [
            "",
            f"## {panel}",
            "",
            "| setting | option | what it does | values | left out |",
            "|---|---|---|---|---|",
        ]
        for name, knob in GenerateRequest.knobs().items():
            if knob.panel == panel:
                field = GenerateRequest.model_fields[name]
                option = f"`{knob.flag} {knob.metavar}`".replace(" `", "`") if knob.flag else ""
                tasks = f" ({', '.join(knob.tasks)})" if knob.tasks else ""
                cells = (f"`{name}`", option, f"{field.description}{tasks}", _values(field.annotation, schema[name]))
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, knob.source)) + " |")
    return "\n".join(lines) + "\n"


def _values(kind: Any, schema: dict[str, Any]) -> str:
    """ "int, 1 to 1000" """
    one = next((entry for entry in schema.get("oneOf", ()) if "minimum" in entry), schema)
    least, most = one.get("minimum"), one.get("maximum")
    written = " | ".join(part for part in plain_type(kind).split(" | ") if part != "None")
    if least is None:
        return written
    return f"{written}, {least:,} to {most:,}" if most is not None and most < 10**9 else f"{written}, {least:,} or more"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
