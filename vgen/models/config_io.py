"""Config files that stay readable by the original classes: keys of ours are written only where they say something."""

from __future__ import annotations

import json
from typing import Any, ClassVar


class OptionalConfigKeys:
    """Mixin for diffusers' ConfigMixin: leaves out of the saved config the optional keys that hold their default.

    Put it before ConfigMixin; `_optional_config_keys` maps each key to its default.
    """

    _optional_config_keys: ClassVar[dict[str, Any]] = {}

    def to_json_string(self) -> str:
        """The config as it is saved."""
        config = json.loads(super().to_json_string())  # type: ignore[misc]
        for key, default in self._optional_config_keys.items():
            if config.get(key) == json.loads(json.dumps(default)):
                config.pop(key, None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
