"""Stored pixels to logits: the one forward pass that validation, test, prediction and acceptance share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vesalius.core.progress import Progress, Silent
from vesalius.data.store import Store
from vesalius.transforms.preprocess import Preprocess


class Task(Protocol):
    """What the forward pass needs of a task."""

    def average(self, views: NDArray[Any]) -> NDArray[np.float64]:
        """Logits ``(V, N, K)`` of several views as one set ``(N, K)``."""


class Forward:
    """Networks in evaluation mode over prepared pixels.

    Always float32 on the CPU, whatever training used: what a bundle says must not depend on the machine more than
    rounding does.

    Parameters
    ----------
    networks
        One per ensemble member.
    views
        Flips that are averaged, each a list of spatial axes in the order (z, y, x); ``[[]]`` is the image as it is.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        preprocess: Preprocess,
        task: Task,
        *,
        device: torch.device | None = None,
        views: Sequence[Sequence[int]] = ((),),
    ) -> None:
        self.device = device or torch.device("cpu")
        order = torch.channels_last if preprocess.dims == 2 else torch.channels_last_3d
        where: Any = {"device": self.device, "memory_format": order}  # torch's stub of `to` lacks memory_format
        self.networks = [network.eval().to(**where) for network in networks]
        self.preprocess = preprocess.to(self.device)
        self.task, self.order = task, order
        self.views = [tuple(2 + int(axis) for axis in view) for view in views] or [()]

    @torch.inference_mode()
    def views_of(self, stored: NDArray[Any] | Tensor) -> NDArray[np.float64]:
        """Logits ``(members * views, B, K)`` of stored pixels ``(B, C, *S)``."""
        pixels = self.preprocess.finish(torch.as_tensor(stored).to(self.device))
        found = []
        for view in self.views:
            seen = (pixels.flip(view) if view else pixels).contiguous(memory_format=self.order)
            found += [network(seen).double().cpu().numpy() for network in self.networks]
        return np.stack(found)

    def logits(self, stored: NDArray[Any] | Tensor) -> NDArray[np.float64]:
        """Logits ``(B, K)``, averaged over members and views."""
        return self.task.average(self.views_of(stored))

    def over_store(
        self,
        store: Store,
        rows: NDArray[np.int64],
        *,
        batch_size: int = 128,
        progress: Progress | None = None,
        what: str = "predict",
    ) -> NDArray[np.float64]:
        """Logits ``(members * views, N, K)`` of rows of a store."""
        progress = progress or Silent()
        progress.start(what, len(rows), "cases")
        parts = []
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            parts.append(self.views_of(store.read(some)))
            progress.advance(len(some))
        progress.stop()
        return np.concatenate(parts, axis=1)
