"""The content of a recipe: a YAML file, those that it extends, and changes by `key=value`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from vgen.errors import RequestError

EXTENDS: Final = "extends"
RECIPE: Final = "recipe.yaml"
"""Of a run, in the run's own folder."""


def read_recipe(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe says; `extends: FILE` takes over another one next to it.

    A section (`data`, `objective`, `optimizer` ...) takes over key by key; what stands under a key of a section, and
    every list, replaces that of the other recipe as a whole. What begins with `./` is a path below the folder of the
    file that holds it, so that a folder can be moved with its recipe; other relative paths start at the working
    directory. The recipe of a run writes to the folder in which it lies, whatever it says: that may have been moved.

    Args:
        path: a YAML file.
        extending: files that led here.
    Raises:
        RequestError: a file is missing or holds no mapping, or extends itself.
    """
    if not path.is_file():
        raise RequestError(f"recipe={path}: there is no such file; give the path of a YAML recipe.")
    if path.resolve() in extending:
        raise RequestError(f"recipe={path} extends itself; remove its {EXTENDS}, or that of a recipe it extends.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe={path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RequestError(f"recipe={path} holds no mapping; it must start with keys such as `name:` and `objective:`.")
    content = placed(content, path)
    base = content.pop(EXTENDS, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise RequestError(f"recipe={path}: {EXTENDS} must be the name of one file next to it (given: {base!r}).")
    return _over(read_recipe(path.parent / base, (*extending, path.resolve())), content)


def placed(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A recipe's content with the paths that go with its file, see `read_recipe`."""
    content = _moved(content, "./", path.parent)
    if is_run(path):
        content = {**_moved(content, f"{content.get('output_dir')}/", path.parent), "output_dir": str(path.parent)}
    return content


def _moved(value: Any, start: str, folder: Path) -> Any:
    """Content in which paths that begin with `start` lie below `folder`."""
    if isinstance(value, dict):
        return {key: _moved(part, start, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, start, folder) for part in value]
    return str(folder / value[len(start) :]) if isinstance(value, str) and value.startswith(start) else value


def is_run(recipe: Path) -> bool:
    """Whether a recipe's file lies in the folder of the run that it began: checkpoints lie next to it."""
    return recipe.name == RECIPE and any(recipe.parent.glob("checkpoints/step-*"))


def _over(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in content.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = {**base[key], **value} if both else value
    return merged


def apply_override(content: dict[str, Any], override: str) -> None:
    """Change a recipe's content by "key.subkey=value", in place.

    Raises:
        RequestError: not of that form, or no such place.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RequestError(f"override={override!r} is not of the form key=value, e.g. optimizer.lr=1e-3.")
    *parents, last = key.strip().split(".")
    place: Any = content
    for part in parents:
        name = _name(place, part, key)
        place = place[name] if isinstance(place, list) else place.setdefault(name, {})
    place[_name(place, last, key)] = _yaml_value(text)


def _name(place: Any, part: str, key: str) -> Any:
    """What `part` is called inside `place`: a position of a list, or a key of a mapping."""
    if isinstance(place, list):
        return _position(place, part, key)
    if not isinstance(place, dict):
        raise RequestError(f"override {key}: {part} lies inside a plain value; only mappings and lists have keys.")
    numbered = part.isdigit() and (int(part) in place or not place or any(isinstance(name, int) for name in place))
    return int(part) if numbered else part


def _position(place: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise RequestError(
            f"override {key}: {part} is no position in a list of {len(place)}; use 0 to {len(place) - 1}."
        )
    return int(part)


def _yaml_value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value
