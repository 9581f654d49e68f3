"""Where a scenario comes from: a name, a TOML file, `--set key=value`, Flower's run_config.

The same keys, flattened with dots, are `fedstill simulate --set key=value` and Flower's run_config, so that
`--set algorithm.temperature=2` and `flwr run . --run-config "algorithm.temperature=2"` mean the same.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedstill.common.errors import ConfigError, nearest
from fedstill.common.scenario import Scenario, parse, to_toml

SCENARIO_GROUP = "fedstill.scenarios"
"""Entry points of packages that hold named scenarios as TOML files."""


_NAMING = ("codec", "algorithm.name", "teacher.kind", "codec.name")
"""Keys that name a plug-in; they are set before its options are."""


def override(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a scenario with some dotted keys changed.

    Another algorithm, teacher or codec takes none of the options of the one it replaces.

    Raises:
        ConfigError: if a dotted key leads through something that is no table.
    """
    result = _deep(table)
    if isinstance(codec := result.get("codec"), str):
        result["codec"] = {"name": codec}
    for key in sorted(changes, key=lambda name: name not in _NAMING):
        *path, last = key.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"key '{key}'", f"expected a table at '{part}'")
        if key in _NAMING and path and place.get(last) != changes[key]:
            place.clear()
        place[last] = changes[key]
    return result


def _deep(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def value_of(text: str) -> Any:
    """The TOML value that a word on the command line stands for; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def named_scenarios() -> dict[str, str]:
    """Every named scenario and its TOML text."""
    found: dict[str, str] = {}
    for point in entry_points(group=SCENARIO_GROUP):
        for entry in files(point.value).iterdir():
            if entry.name.endswith(".toml"):
                found[entry.name.removesuffix(".toml")] = entry.read_text(encoding="utf-8")
    return dict(sorted(found.items()))


def read_table(name: str) -> dict[str, Any]:
    """The tables of a scenario by its name, or of a TOML file by its path.

    Raises:
        ConfigError: if there is no such scenario, or the file is no TOML.
    """
    named = named_scenarios()
    if name in named:
        return _toml(named[name], name)
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        try:
            return _toml(path.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"scenario file '{name}'", f"cannot be read: {error}") from None
    raise ConfigError(f"scenario '{name}'", "expected a known scenario or a .toml file", nearest(name, named))


def _toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"scenario '{name}'", f"is no TOML: {error}") from None


RUN_CONFIG_OWN = ("scenario", "toml", "set", "data-dir", "run-dir", "public", "metrics")
"""Keys of Flower's run_config that are not keys of a scenario."""


def from_run_config(config: Mapping[str, Any]) -> Scenario:
    """The scenario that Flower's flat run_config describes.

    `toml` holds a whole scenario (the local engine's way), else `scenario` names one; any other key with a value other
    than "" changes it, and `set` holds further changes as "key=value key=value".

    Raises:
        ConfigError: see `parse`.
    """
    text = str(config.get("toml", ""))
    table = _toml(text, "toml") if text else read_table(str(config.get("scenario", "")) or "digits")
    changes = {key: value for key, value in config.items() if key not in RUN_CONFIG_OWN and value != ""}
    for word in str(config.get("set", "")).split():
        key, _, value = word.partition("=")
        changes[key] = value_of(value)
    return _parsed(to_toml(override(table, changes)))


@lru_cache(maxsize=8)
def _parsed(text: str) -> Scenario:
    return parse(_toml(text, "run_config"))
