"""Writes docs/plan.md and its JSON Schema from the declaration of the keys: python docs/make_plan_page.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vesalius.core.files import write_text
from vesalius.core.plan import SCHEMA, sections
from vesalius.core.plan_keys import CONTRADICTIONS, KEYS, Key

PAGE = Path(__file__).with_name("plan.md")
SCHEMA_FILE = Path(__file__).parent / "schemas" / "plan.schema.json"

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}

HEAD = f"""# The plan

<!-- Made by docs/make_plan_page.py from src/vesalius/core/plan_keys.py. Do not edit by hand. -->

A plan holds every decision of a run, each with its value and its reason. `vesalius plan` writes one, `vesalius train`
makes one or follows yours, and every run and every bundle keeps a copy.

```yaml
schema: {SCHEMA}
task: classify
model:
  name: {{value: lean, because: why it was chosen}}
  width: 24
```

A bare value, as for `width` here, counts as set by you. To change a decision, edit the file and pass it with `--plan`,
or name the key with `--set`; the planner keeps what is set. A key that does not exist, a value that does not fit and
two keys that contradict each other are refused by name before any work starts. A machine can check a plan with
[schemas/plan.schema.json](schemas/plan.schema.json).

```console
$ vesalius plan scans --out plan.yaml
$ vesalius train scans --out runs/first --plan plan.yaml --set optim.lr=0.05 --set augment.preset=strong
```

The default in the tables below holds where nobody decided. The planner decides most keys from the data, from the
machine and from the budget, so that the value in your plan often differs from the default.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for section in sections():
        lines = [f"## {section}", "", "| key | value | default | meaning |", "|---|---|---|---|"]
        lines += [_row(name, key) for name, key in KEYS.items() if name.startswith(f"{section}.")]
        parts.append("\n".join(lines) + "\n")
    rules = ["## What contradicts", "", "| keys | rule |", "|---|---|"]
    rules += [f"| {', '.join(f'`{key}`' for key in keys)} | {message} |" for keys, _, message in CONTRADICTIONS]
    return "\n".join([*parts, "\n".join(rules) + "\n"])


def schema() -> str:
    """The JSON Schema of a plan file."""
    found: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"plan.yaml, schema {SCHEMA}",
        "description": "Every decision of a run: a value with its reason, or a bare value, set by a person.",
        "type": "object",
        "properties": {"schema": {"const": SCHEMA}, "task": {"enum": ["classify", "segment"]}},
        "additionalProperties": False,
    }
    for section in sections():
        keys = {name.split(".", 1)[1]: key for name, key in KEYS.items() if name.startswith(f"{section}.")}
        found["properties"][section] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: _decision(key) for name, key in keys.items()},
        }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _decision(key: Key) -> dict[str, Any]:
    plain: dict[str, Any] = {"type": _TYPES[key.kind]}
    plain |= {name: value for name, value in (("minimum", key.low), ("maximum", key.high)) if value is not None}
    if key.choices:
        plain["enum"] = list(key.choices)
    value = {"oneOf": [{"type": "null"}, plain]} if key.optional else plain
    reasoned = {
        "type": "object",
        "required": ["value"],
        "additionalProperties": False,
        "properties": {"value": value, "because": {"type": "string"}},
    }
    return {"description": key.doc, "anyOf": [reasoned, value]}


def _row(name: str, key: Key) -> str:
    return f"| `{name}` | {_value(key)} | {_default(key)} | {key.doc.replace('|', chr(92) + '|')} |"


def _value(key: Key) -> str:
    if key.choices:
        text = ", ".join(f"`{choice}`" for choice in key.choices)
    else:
        text = _WORDS[key.kind]
        if key.low is not None and key.high is not None:
            text += f", {_number(key.low)} to {_number(key.high)}"
        elif key.low is not None:
            text += f", at least {_number(key.low)}"
    return text + (", or null" if key.optional else "")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def _default(key: Key) -> str:
    return f"`{json.dumps(key.default)}`"


if __name__ == "__main__":
    write_text(PAGE, page())
    write_text(SCHEMA_FILE, schema())
