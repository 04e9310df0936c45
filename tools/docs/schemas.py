"""docs/reference/profiles.md and report.md: the fields of profiles and of the boot report, from their JSON Schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from attnkit import profiles
from attnkit.boot import report
from tools.docs.markdown import cell, page, table

Schema = Mapping[str, Any]
MEANINGS = {
    "name": "The profile's name, as in its file name",
    "title": "What people call it",
    "backends": "Names to try, first choice first",
    "dtype": "Data type of queries, keys and values; `auto` takes the model's",
    "kv_cache_dtype": "Data type of the key/value cache; `auto` takes the model's",
    "block_size": "Tokens in a block of the cache",
    "level": "How thorough the self-test is",
    "engine": "What the engine is started with",
}
"""Fields whose class has no description of its own."""


def profile_schema_text() -> str:
    """JSON Schema of the node and workload profiles, for editors."""
    return json.dumps(profiles.schema(), indent=2, ensure_ascii=False) + "\n"


def profiles_markdown() -> str:
    """The page about profiles."""
    definitions = profiles.schema()["$defs"]
    titles = {"NodeProfile": "Node type", "WorkloadProfile": "Workload"}
    order = sorted(definitions, key=lambda name: (name not in titles, name))
    lines = [
        "A profile is one small YAML file: `profiles/nodes/NAME.yaml` for a node type, `profiles/workloads/NAME.yaml` for a workload.",
        "Unknown fields are errors; messages name file, line, field and the allowed values. The JSON Schema, for editors, is",
        "[profiles/schema.json](https://github.com/attnkit/attnkit/blob/main/profiles/schema.json). The built-in profiles are listed in",
        "[Node types and workloads](node-types.md).",
    ]
    for name in order:
        lines += ["", f"## {titles.get(name, name)}", "", *_object(definitions[name], definitions)]
    return page("Profile schema", *lines)


def report_markdown() -> str:
    """The page about the boot report."""
    schema = json.loads(report.schema_text())
    definitions = schema["$defs"]
    lines = [
        "`attnkit boot` writes one JSON document, by default `/run/attnkit/report.json`. It is written again whenever it grows, and",
        "replaced atomically. Its JSON Schema is published as [report.schema.json](../report.schema.json). The readiness file, the",
        "[Prometheus text](metrics.md) and the HTML page (`attnkit report FILE --html OUT`) are made from it.",
        "",
        "## BootReport",
        "",
        *_object(schema, definitions),
    ]
    for name in definitions:
        lines += ["", f"## {name}", "", *_object(definitions[name], definitions)]
    return page("Boot report", *lines)


def _object(schema: Schema, definitions: Schema) -> Iterable[str]:
    summary, arguments = _described(str(schema.get("description", "")))
    required = set(schema.get("required", ()))
    rows = []
    for name, field in schema.get("properties", {}).items():
        text = str(field.get("description") or arguments.get(name) or MEANINGS.get(name, ""))
        text = text[:1].upper() + text[1:].rstrip(".")
        default = "required" if name in required else _default(field)
        rows.append((f"`{name}`", _type(field, definitions), default, cell(text)))
    return [*([summary, ""] if summary else []), *table(("field", "type", "default", "meaning"), rows)]


def _described(docstring: str) -> tuple[str, dict[str, str]]:
    """The text before “Args:”, and the description of each argument, of a docstring."""
    head, _, tail = docstring.partition("Args:")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in re.split(r"\n\s*|(?<=\.) (?=\w+: )", tail.strip()):
        entry = re.match(r"((?:\w+, )*\w+): (.*)", line)
        if entry:
            names, text = entry[1].split(", "), entry[2]
        else:
            text = line
        for name in names:
            found[name] = f"{found[name]} {text}" if not entry and name in found else text
    return " ".join(head.split()), found


def _default(field: Schema) -> str:
    value = field.get("default")
    return "" if value in (None, [], {}, "") else f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(field: Schema, definitions: Schema) -> str:
    """A JSON Schema type in words, with links to the objects of the page."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", maxsplit=1)[-1]
        return f"[{name}](#{name.lower()})" if definitions[name].get("properties") else _type(definitions[name], definitions)
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        parts = [_type(part, definitions) for part in field["anyOf"]]
        return " or ".join(dict.fromkeys(parts))
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field.get('items', {}), definitions)}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"map of {_type(inner, definitions)}" if isinstance(inner, Mapping) else "object"
    return str(kind)
