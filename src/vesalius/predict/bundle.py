"""The one artefact: weights, plan, labels, preprocessing, calibration, card, checksums. Nothing in it is code.

A bundle is a folder::

    model.safetensors   weights of every member, names prefixed by "0.", "1."...
    member-0.onnx ...   of an int8 bundle instead: the network of every member
    bundle.json         schema version and everything that is not a weight; docs/schemas/bundle.schema.json
    plan.yaml           the plan of the run that made it
    card.md             what it is for and what may not be concluded
    SHA256SUMS          checksum of each file above, as sha256sum(1) writes it
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vesalius.core.errors import AcceptanceError, FileError, UnreadableFile
from vesalius.core.files import atomic, sha256, write_json, write_text
from vesalius.core.labels import Labels
from vesalius.core.version import __version__
from vesalius.predict.graph_network import GraphNetwork
from vesalius.tasks.classify import Classify
from vesalius.tasks.segment import Segment

SCHEMA = 1
WEIGHTS, HEAD, CARD, PLAN, SUMS = "model.safetensors", "bundle.json", "card.md", "plan.yaml", "SHA256SUMS"
ARITHMETIC = ("float32", "int8")
TASKS: dict[str, type[Classify] | type[Segment]] = {"classify": Classify, "segment": Segment}


@dataclass
class Bundle:
    """A model in memory, independent of how it was trained.

    Parameters
    ----------
    task
        ``"classify"`` or ``"segment"``.
    labels
        The classes in the order of the logits.
    preprocess
        Spec of `transforms.preprocess.Preprocess`, for segmentation of `transforms.conform.Conform`.
    model
        Section ``model`` of the plan.
    members
        State dicts, one per network of the ensemble.
    temperature
        Logits are divided by it before they become probabilities.
    threshold
        For two classes: the positive class is said from this probability on; None for the larger one.
    views
        Flips averaged at prediction.
    inference
        For segmentation: tiles, what is skipped, decoding of objects, post-processing, boundary band.
    facts
        Anything a reader may want to know: training cases, metrics, modality, data hash.
    graphs
        Of an int8 bundle, which has no `members`: one serialised ONNX model per network of the ensemble.
    arithmetic
        ``"float32"`` or ``"int8"``.
    """

    task: str
    labels: Labels
    preprocess: dict[str, Any]
    model: dict[str, Any]
    members: list[dict[str, Tensor]]
    temperature: float = 1.0
    threshold: float | None = None
    views: list[list[int]] = field(default_factory=lambda: [[]])
    inference: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    plan_yaml: str = ""
    card: str = ""
    checksum: str = ""
    """SHA-256 of the weights file (of several graphs: of all, one after the other); set when loaded or saved."""
    graphs: list[bytes] = field(default_factory=list)
    arithmetic: str = "float32"

    def head(self) -> dict[str, Any]:
        """The content of ``bundle.json``."""
        head = {
            "schema": SCHEMA,
            "kind": "vesalius.bundle",
            "made_by": f"vesalius {__version__}",
            "task": self.task,
            "labels": self.labels.to_json(),
            "preprocess": self.preprocess,
            "model": self.model,
            "members": len(self.graphs or self.members),
            "calibration": {"temperature": self.temperature},
            "decision": {"threshold": self.threshold},
            "views": self.views,
            "facts": self.facts,
        }
        head |= {"arithmetic": self.arithmetic} if self.graphs else {}
        return head | ({"inference": self.inference} if self.inference else {})

    def make_task(self) -> Classify | Segment:
        """The task object that decodes this bundle's logits."""
        return TASKS[self.task](self.labels)

    def networks(self) -> list[nn.Module]:
        """The members as networks with their weights, in evaluation mode."""
        task = self.make_task()
        if self.graphs:
            outputs = task.outputs if isinstance(task, Segment) else len(self.labels)
            dense = isinstance(task, Segment)
            return [
                GraphNetwork(graph, outputs=outputs, dense=dense, number=number).eval()
                for number, graph in enumerate(self.graphs)
            ]
        dims, inputs = int(self.preprocess["dims"]), int(self.preprocess["channels"])
        size = self.model["patch"] if isinstance(task, Segment) else self.preprocess["size"]
        found = []
        for weights in self.members:
            network = task.network(self.model, dims=dims, inputs=inputs, size=size)
            try:
                network.load_state_dict(weights)
            except RuntimeError as error:
                raise AcceptanceError(
                    f"{WEIGHTS} does not fit the network of {HEAD}: {str(error).splitlines()[0]}"
                ) from None
            found.append(network.eval())
        return found

    def save(self, folder: str | Path) -> Path:
        """Write the folder; it appears whole, an older one at the same place is replaced at the end."""
        folder = Path(folder)
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        stored = self._stored()
        for name, content in stored.items():
            with atomic(part / name) as file:
                file.write(content)
        write_json(part / HEAD, self.head())
        write_text(part / PLAN, self.plan_yaml)
        write_text(part / CARD, self.card)
        self.checksum = _digest(stored)
        write_text(part / SUMS, "".join(f"{sha256(part / name)}  {name}\n" for name in (*stored, HEAD, PLAN, CARD)))
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        return folder

    def _stored(self) -> dict[str, bytes]:
        """The files that hold the networks, by name."""
        if self.graphs:
            return dict(zip(_graph_names(len(self.graphs)), self.graphs, strict=True))
        from safetensors.torch import save  # save_file() would make it readable for its owner only

        tensors = {
            f"{index}.{name}": value.detach().cpu().contiguous()
            for index, member in enumerate(self.members)
            for name, value in member.items()
        }
        return {WEIGHTS: save(tensors, metadata={"format": "pt"})}

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle folder, or the ``bundle`` folder of a run, and verify its checksums.

        Raises
        ------
        FileError
            If there is no bundle or it is of an unknown schema.
        AcceptanceError
            If a file is not the one that was written (exit code 6).
        """
        folder = find_bundle(path)
        _verify(folder, (HEAD, PLAN, CARD))
        head = _read_head(folder / HEAD)
        count, arithmetic = int(head["members"]), head.get("arithmetic", "float32")
        names = (WEIGHTS,) if arithmetic == "float32" else _graph_names(count)
        _verify(folder, names)
        members: list[dict[str, Tensor]] = []
        graphs: dict[str, bytes] = {}
        if arithmetic == "float32":
            from safetensors.torch import load_file

            members = [{} for _ in range(count)]
            for name, value in load_file(str(folder / WEIGHTS)).items():
                index, _, rest = name.partition(".")
                members[int(index)][rest] = value
        else:
            graphs = {name: (folder / name).read_bytes() for name in names}
        return cls(
            task=head["task"],
            labels=Labels.from_json(head["labels"]),
            preprocess=head["preprocess"],
            model=head["model"],
            members=members,
            temperature=float(head["calibration"]["temperature"]),
            threshold=head["decision"]["threshold"],
            views=[list(v) for v in head["views"]],
            inference=dict(head.get("inference", {})),
            facts=head["facts"],
            plan_yaml=(folder / PLAN).read_text(encoding="utf-8"),
            card=(folder / CARD).read_text(encoding="utf-8"),
            checksum=_digest(graphs) if graphs else sha256(folder / WEIGHTS),
            graphs=list(graphs.values()),
            arithmetic=arithmetic,
        )

    def same_as(self, other: Bundle) -> bool:
        """Whether every weight is bit-equal."""
        return (
            self.graphs == other.graphs
            and len(self.members) == len(other.members)
            and all(
                mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
                for mine, theirs in zip(self.members, other.members, strict=True)
            )
        )


def learned_values(members: Sequence[Mapping[str, Tensor]]) -> int:
    """Learned numbers of all networks, given as state dicts; running statistics and tables of places are none."""
    return sum(
        int(value.numel())
        for member in members
        for name, value in member.items()
        if value.is_floating_point() and "running_" not in name
    )


def find_bundle(path: str | Path) -> Path:
    """The bundle folder that `path` means: itself, or ``bundle`` inside a run."""
    path = Path(path)
    for folder in (path, path / "bundle"):
        if (folder / HEAD).is_file():
            return folder
    found = "nothing at this path" if not path.exists() else "no bundle.json"
    raise FileError(path, found=found, expected="a run folder or a bundle folder", do="train one with `vesalius train`")


def _graph_names(count: int) -> tuple[str, ...]:
    return tuple(f"member-{number}.onnx" for number in range(count))


def _digest(stored: dict[str, bytes]) -> str:
    """SHA-256 of the files, one after the other; of a single one it is that of the file."""
    found = hashlib.sha256()
    for content in stored.values():
        found.update(content)
    return found.hexdigest()


def _verify(folder: Path, names: tuple[str, ...]) -> None:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise AcceptanceError(
            f"{folder / SUMS}: missing; the bundle cannot be verified, copy the whole folder again"
        ) from None
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in names:
        if name not in listed or not (folder / name).is_file():
            raise AcceptanceError(f"{folder / name}: missing or not in {SUMS}; copy the whole folder again")
        if sha256(folder / name) != listed[name]:
            raise AcceptanceError(
                f"{folder / name}: checksum differs from {SUMS}; the file was changed or damaged, copy it again"
            )


def _read_head(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raise UnreadableFile(
            path, found="no JSON", expected="the head of a bundle", do="copy the bundle again"
        ) from None
    if head.get("kind") != "vesalius.bundle" or head.get("schema") != SCHEMA:
        raise UnreadableFile(
            path,
            found=f"schema {head.get('schema')!r}",
            expected=f"a bundle of schema {SCHEMA}",
            do="use the version of vesalius that wrote it",
        )
    if head.get("task") not in TASKS:
        raise UnreadableFile(
            path, found=f"task {head.get('task')!r}", expected=f"one of {', '.join(TASKS)}", do="update vesalius"
        )
    if head.get("arithmetic", "float32") not in ARITHMETIC:
        raise UnreadableFile(
            path,
            found=f"arithmetic {head['arithmetic']!r}",
            expected=f"one of {', '.join(ARITHMETIC)}",
            do="update vesalius",
        )
    return dict(head)
