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
PROFILE_FIELDS = {
    "Product.name": "Regular expression, searched in the device's name without regard to case",
    "name": "The profile's name, as in its file name",
    "title": "What people call it",
    "backends": "Names to try, first choice first",
    "dtype": "Data type of queries, keys and values; `auto` takes the model's",
    "kv_cache_dtype": "Data type of the key/value cache; `auto` takes the model's",
    "block_size": "Tokens in a block of the cache",
    "level": "How thorough the self-test is",
    "on_bad_device": "A device that fails where its equals pass: `fail` ends the boot, `leave_out` hides it from the engine",
    "engine": "What the engine is started with",
    "vendor": "nvidia, amd, intel, google or cpu",
    "arch": "Patterns of architectures (sm_75, gfx942)",
    "platform": "The image family it runs",
    "pci_ids": "vendor:device, lower case",
    "any_feature": "At least one of these device features must be there",
    "families": "Families of node types that share everything but their devices",
}
"""Fields of profiles whose class has no description, by name, or by object and name."""

REPORT_FIELDS = {
    "BootReport.schema_version": "Version of this format",
    "BootReport.attnkit_version": "The version that wrote it",
    "BootReport.host": "Host name, kernel release, operating system",
    "BootReport.node_type": "The node type; null where none matches",
    "BootReport.node_type_source": "Whether it was detected, or given with `--node`",
    "BootReport.node_type_why": "What it was recognized by",
    "BootReport.detection": "Devices, and what each probe said",
    "BootReport.need": "What the model asks for",
    "BootReport.decision": "Accepted and rejected backends, with reasons",
    "BootReport.selftest": "One verdict for each candidate and device that was tested",
    "BootReport.verdict": "The verdict of the boot; `planted` where the device was simulated",
    "BootReport.provider": "The library behind the backend",
    "BootReport.fallbacks": "Each step along the chain, with its reason",
    "BootReport.kernels": "Precompiled kernels, and kernels compiled just in time",
    "BootReport.engine": "The serving engine; null where none was asked for",
    "BootReport.levels": "The self-test's level, and the one that the profile asks for",
    "BootReport.boot_seconds": "Wall time of each step",
    "Accepted.backend": "The backend",
    "Accepted.provider": "The library behind it",
    "Accepted.reason": "Why it can serve",
    "BootSeconds.detect": "Detection",
    "BootSeconds.select": "Selection",
    "BootSeconds.selftest": "Self-tests of all candidates",
    "BootSeconds.engine": "From the engine's start until it was ready",
    "BootSeconds.total": "The whole boot",
    "Completion.prompt_tokens": "Tokens of the prompt",
    "Completion.completion_tokens": "Tokens that came back",
    "Completion.seconds": "Time of the request",
    "Completion.tokens_per_s": "Completion tokens a second; null where it cannot be known",
    "DecisionReport.device": "The device that the decision is for",
    "DecisionReport.chosen": "The backend that is selected; null where none can serve",
    "DecisionReport.accepted": "Backends that can serve, in the order in which they are tried",
    "DecisionReport.rejected": "All others, with their reasons",
    "DecisionReport.explicit": "Whether the backend was chosen explicitly, which never falls back",
    "DecisionReport.order": "The order that was asked for",
    "DecisionReport.order_source": "Who stated the order",
    "DecisionReport.warnings": "What is unusual, in words",
    "DeviceReport.index": "Position among devices of its vendor, as `attnkit detect` shows it",
    "DeviceReport.name": "Its name",
    "DeviceReport.arch": "Its architecture",
    "DeviceReport.uuid": "As the vendor's tools spell it",
    "DeviceReport.pci_address": "Its PCI address",
    "DeviceReport.seconds": "Time of its self-test",
    "EngineReport.version": "Version of the engine",
    "EngineReport.notes": "What else there is to know about the start",
    "EngineReport.health_url": "Where its health was asked for",
    "EngineReport.health_seconds": "Seconds until it was healthy",
    "EngineReport.completion": "The completion that was requested",
    "EngineReport.exit_code": "Its exit code; null while it runs",
    "Fallback.from": "The backend that was given up",
    "Fallback.reason": "Why",
    "KernelCounts.baked": "Precompiled kernels that were used",
    "KernelCounts.jit_compiles": "Kernels compiled just in time during the self-test",
    "Levels.ran": "The level that ran",
    "Levels.profile": "The level of the node's profile",
    "NeedReport.source": "Where the requirements came from: a model, a preset, a default",
    "NeedReport.specs": "One specification for each kind of attention layer",
    "NeedReport.notes": "What was not understood or was assumed",
    "ProbeResult.probe": "Name of the probe",
    "ProbeResult.devices": "What it found",
    "ProbeResult.error": "Why it failed; null where it did not",
    "ProbeResult.notes": "What else it saw",
    "Rejected.backend": "The backend",
    "Rejected.reasons": "Every reason, with a code and a message",
    "Result.outcome": "What its verdicts come to",
    "SpecReport.op": "The operation",
    "SpecReport.dtype": "Data type of queries and output",
    "SpecReport.num_heads": "Query heads",
    "SpecReport.num_kv_heads": "Key/value heads",
    "SpecReport.head_dim": "Size of a head",
    "SpecReport.head_dim_v": "Size of a value head, where it differs",
    "SpecReport.kv_cache_dtype": "Data type of the cache",
    "SpecReport.block_size": "Tokens in a block of the cache; null: any",
    "SpecReport.phases": "Prefill, decode, mixed batches",
    "SpecReport.features": "Features of the softmax that the model needs",
}
"""Fields of the report whose class has no description, by object and name."""


def profile_schema_text() -> str:
    """JSON Schema of the node and workload profiles, for editors."""
    return json.dumps(profiles.schema(), indent=2, ensure_ascii=False) + "\n"


def profiles_markdown() -> str:
    """The page about profiles."""
    schema: Schema = profiles.schema()
    definitions: dict[str, Schema] = schema["$defs"]
    titles = {"NodeProfile": "Node type", "WorkloadProfile": "Workload"}
    order = sorted(definitions, key=lambda name: (name not in titles, name))
    lines = [
        "A profile is one small YAML file: `profiles/nodes/NAME.yaml` for a node type, `profiles/workloads/NAME.yaml`",
        "for a workload.",
        "Unknown fields are errors; messages name file, line, field and the allowed values. The JSON Schema, for editors, is",
        "[profiles/schema.json](https://github.com/attnkit/attnkit/blob/main/profiles/schema.json). The built-in",
        "profiles are listed in",
        "[Node types and workloads](node-types.md).",
    ]
    for name in order:
        lines += ["", f"## {titles.get(name, name)}", "", *_object(name, definitions[name], definitions, PROFILE_FIELDS)]
    return page("Profile schema", *lines)


def report_markdown() -> str:
    """The page about the boot report."""
    schema = json.loads(report.schema_text())
    definitions = schema["$defs"]
    lines = [
        "`attnkit boot` writes one JSON document, by default `/run/attnkit/report.json`. It is written again whenever",
        "it grows, and",
        "replaced atomically. Its JSON Schema is published as [report.schema.json](../report.schema.json). The",
        "readiness file, the",
        "[Prometheus text](metrics.md) and the HTML page (`attnkit report FILE --html OUT`) are made from it.",
        "",
        "## BootReport",
        "",
        *_object("BootReport", schema, definitions, REPORT_FIELDS),
    ]
    for name in definitions:
        lines += ["", f"## {name}", "", *_object(name, definitions[name], definitions, REPORT_FIELDS)]
    return page("Boot report", *lines)


def _object(owner: str, schema: Schema, definitions: Schema, known: Mapping[str, str]) -> Iterable[str]:
    summary, arguments = _described(str(schema.get("description", "")))
    required = set(schema.get("required", ()))
    rows = []
    for name, field in schema.get("properties", {}).items():
        text = str(field.get("description") or arguments.get(name) or known.get(f"{owner}.{name}", known.get(name, "")))
        if not text:
            raise ValueError(f"describe {owner}.{name} with Field(description=…) in its class, or in {__file__}")
        if text.split(maxsplit=1)[0].isalpha():  # a sentence, and no name or list of values
            text = text[:1].upper() + text[1:]
        default = "required" if name in required else _default(field)
        rows.append((f"`{name}`", _type(field, definitions), default, cell(text).rstrip(".")))
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
    return "" if value in (None, [], "") or isinstance(value, dict) else f"`{json.dumps(value, ensure_ascii=False)}`"


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
