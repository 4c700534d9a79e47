"""A plan: everything a run needs, each decision with its value and its reason.

On disk it is YAML that a person can read and overrule::

    schema: 1
    task: classify
    model:
      name: {value: lean, because: best for its cost on two cores}

Which keys exist is declared in `core.plan_keys`; an unknown key, a value of the wrong kind and two keys that contradict
each other are refused by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vesalius.core.errors import PlanError
from vesalius.core.files import write_text
from vesalius.core.plan_keys import CONTRADICTIONS, KEYS, Key

SCHEMA = 1


@dataclass(frozen=True)
class Decision:
    """A value and why it was chosen."""

    value: Any
    because: str


@dataclass
class Plan:
    """Decisions by dotted key, for example ``plan["model.name"]``.

    A plan is filled by a planner (`decide`), overruled by a person (`overrule`), checked as a whole (`check`) and then
    only read.
    """

    task: str
    decisions: dict[str, Decision] = field(default_factory=dict)

    def decide(self, key: str, value: Any, because: str) -> None:
        """Set `key`; the value is checked against the key's declaration.

        Raises
        ------
        PlanError
            If the key does not exist (the nearest names are given) or the value does not fit.
        """
        self.decisions[key] = Decision(_declared(key).accept(key, value), because)

    def overrule(self, settings: Mapping[str, Any], because: str = "set by the user") -> None:
        """Replace decisions by a person's own; strings are read as YAML (``"0.1"`` becomes a number)."""
        for key, value in settings.items():
            self.decide(key, read_scalar(value) if isinstance(value, str) else value, because)

    def __getitem__(self, key: str) -> Any:
        _declared(key)
        if key in self.decisions:
            return self.decisions[key].value
        return KEYS[key].default

    def because(self, key: str) -> str:
        """The reason of a decision; empty where the default stands."""
        return self.decisions[key].because if key in self.decisions else ""

    def section(self, name: str) -> dict[str, Any]:
        """All values of a section, defaults included: ``plan.section("optim")["lr"]``."""
        prefix = f"{name}."
        found = {key[len(prefix) :]: self[key] for key in KEYS if key.startswith(prefix)}
        if not found:
            raise PlanError(f"a plan has no section {name!r}; it has {', '.join(sections())}")
        return found

    def check(self) -> None:
        """Refuse contradictions; the message names both keys."""
        other = "preprocess." if self.task == "segment" else "conform."
        for keys, wrong, message in CONTRADICTIONS:
            if not any(key.startswith(other) for key in keys) and wrong(*(self[key] for key in keys)):
                shown = " and ".join(f"{key} = {self[key]!r}" for key in keys)
                raise PlanError(f"plan contradicts itself: {shown}; {message}")

    def __iter__(self) -> Iterator[tuple[str, Decision]]:
        order = {key: place for place, key in enumerate(KEYS)}
        yield from sorted(self.decisions.items(), key=lambda item: order[item[0]])

    def to_mapping(self) -> dict[str, Any]:
        """Nested plain data, in the order of the declaration."""
        data: dict[str, Any] = {"schema": SCHEMA, "task": self.task}
        for key, decision in self:
            section, name = key.split(".", 1)
            data.setdefault(section, {})[name] = {"value": decision.value, "because": decision.because}
        return data

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], *, source: str = "plan") -> Plan:
        """The inverse of `to_mapping`; a bare value in place of ``{value, because}`` is taken as set by the user."""
        if not isinstance(data, Mapping):
            raise PlanError(f"{source}: expected a mapping of sections, found {type(data).__name__}")
        schema = data.get("schema", SCHEMA)
        if schema != SCHEMA:
            raise PlanError(f"{source}: plan schema {schema!r} is not known to this version; it reads schema {SCHEMA}")
        plan = cls(task=str(data.get("task", "classify")))
        for section, entries in data.items():
            if section in ("schema", "task"):
                continue
            if section not in sections():
                raise PlanError(f"{source}: unknown section {section!r}{_nearest(section, sections())}")
            if not isinstance(entries, Mapping):
                raise PlanError(f"{source}: section {section!r} must be a mapping, found {type(entries).__name__}")
            for name, entry in entries.items():
                value, because = entry, "set by the user"
                if isinstance(entry, Mapping) and "value" in entry:
                    extra = sorted(entry.keys() - {"value", "because"})
                    if extra:
                        raise PlanError(f"{source}: {section}.{name} has {extra}; a decision has value and because")
                    value, because = entry["value"], str(entry.get("because", because))
                try:
                    plan.decide(f"{section}.{name}", value, because)
                except PlanError as error:
                    raise PlanError(f"{source}: {error}") from None
        return plan

    def write(self, path: str | Path) -> Path:
        """Write as YAML, atomically."""
        import yaml

        head = f"# Plan of a {self.task} run. Change a value, then: vesalius train DATA --plan THIS_FILE --out RUN\n"
        body = yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True, width=110)
        return write_text(path, head + body)

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan file.

        Raises
        ------
        PlanError
            If it is missing, not YAML, or holds unknown keys; the message names the file and the key.
        """
        import yaml

        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"{path}: cannot be read ({error.strerror}); give an existing plan.yaml") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise PlanError(
                f"{path}: is not YAML ({str(error).splitlines()[0]}); write one with `vesalius plan`"
            ) from None
        return cls.from_mapping(data, source=str(path))


def read_scalar(text: str) -> Any:
    """A value typed on a command line, as YAML reads it; ``1e-3`` counts as a number, which YAML 1.1 forgets."""
    import yaml

    try:
        return float(text) if "e" in text.lower() and text.strip()[:1] in "+-.0123456789" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``["model.name=resnet18", ...]`` as a mapping.

    Raises
    ------
    PlanError
        If a pair has no ``=`` or names no key of a plan.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise PlanError(f"--set {pair!r} has no value; write for example --set model.name=resnet18")
        _declared(key.strip())
        settings[key.strip()] = read_scalar(value.strip())
    return settings


def sections() -> list[str]:
    """Names of the sections in the order of the declaration."""
    return list(dict.fromkeys(key.split(".", 1)[0] for key in KEYS))


def _declared(key: str) -> Key:
    if key not in KEYS:
        raise PlanError(f"a plan has no key {key!r}{_nearest(key, list(KEYS))}")
    return KEYS[key]


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(known)}"
