"""One thing to predict on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vesalius.core.image import Clip, Image


@dataclass(frozen=True, eq=False)
class Case:
    """Images or clips by role, with who they belong to.

    Parameters
    ----------
    case_id
        Unique in a cohort; stems of result files are made from it.
    patient_id
        The person. Splits and bootstrap intervals are by patient, so two cases of one person share it.
    images, clips
        By role; the usual single role is ``"image"``.
    signals
        Sampled signals by name (later: fusion).
    covariates
        Age, sex, site, scanner...
    target
        What is known to be true, for tasks that have it: a class index, a tuple of 0/1, an `Image` of labels...
    """

    case_id: str
    patient_id: str
    images: Mapping[str, Image] = field(default_factory=dict)
    clips: Mapping[str, Clip] = field(default_factory=dict)
    signals: Mapping[str, Any] = field(default_factory=dict)
    covariates: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None

    def image(self, role: str = "image") -> Image:
        """The image in `role`; one line says which roles exist if there is none."""
        if role not in self.images:
            raise KeyError(f"case {self.case_id} has no image in role {role!r}; it has {sorted(self.images)}")
        return self.images[role]
