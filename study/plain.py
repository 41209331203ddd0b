"""What people write: YAML of plain values, and what a value must be, by ``study/profile.schema.yml``."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from reprlib import repr as shorten  # a value may be as large as it likes
from typing import Any

import fastjsonschema
import yaml


class _Loader(yaml.SafeLoader):
    """YAML of plain values: no key stands twice in one place, and aliases do not multiply."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.aliases > 30:
            raise yaml.YAMLError("more than 30 aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(keys) > len(set(keys)):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The contents of a YAML file; ValueError where it is not YAML of plain values, or a key stands twice."""
    try:
        return yaml.load(path.read_text("utf-8-sig"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not YAML of plain values in UTF-8: mend it ({what})") from error


@cache
def _schema(part: str) -> Callable[[Any], Any]:
    contents = yaml.safe_load(Path(__file__).with_name("profile.schema.yml").read_text())
    rule = contents if part == "profile" else contents["definitions"][part]
    return fastjsonschema.compile({"$schema": contents["$schema"]} | rule)


def conform(part: str, value: Any, where: str = "") -> None:
    """ValueError where a value is not as a part of ``study/profile.schema.yml`` says that it must be."""
    try:
        _schema(part)(value)
    except fastjsonschema.JsonSchemaValueException as error:
        name, rule = ".".join(error.path[1:]) or f"the {part}", error.definition["description"]
        known = error.definition.get("properties")
        what = f"{name} is {shorten(error.value)}, it must be {rule}"
        if error.rule == "required":
            missing = [key for key in error.definition["required"] if key not in error.value]
            what = f"{name} lacks {', '.join(missing)}, it must hold {rule}"
        if error.rule == "additionalProperties" and known:
            unknown = ", ".join(str(key)[:99] for key in error.value if key not in known)
            what = f"{name} holds {unknown}, which is unknown; known are {', '.join(known)}"
        raise ValueError(f"{where}{what}") from error
    for name, one in value.items():
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{where}{name} is {one}, it must be a finite number")
