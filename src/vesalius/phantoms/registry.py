"""All kinds of phantoms by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vesalius.core.errors import UsageError
from vesalius.phantoms.brain import make_brain
from vesalius.phantoms.chest import make_chest
from vesalius.phantoms.ct import make_ct
from vesalius.phantoms.phantom import Phantom
from vesalius.phantoms.smear import make_smear
from vesalius.phantoms.solid import make_solid
from vesalius.phantoms.vessels import make_vessels

PHANTOMS: Mapping[str, Callable[..., Phantom]] = {
    "chest": make_chest,
    "ct": make_ct,
    "brain": make_brain,
    "vessels": make_vessels,
    "smear": make_smear,
    "solid": make_solid,
}


def make(name: str, *, seed: int, index: int, **options: Any) -> Phantom:
    """Case number `index` of the cohort `seed` of kind `name`; a pure function of its arguments.

    Raises
    ------
    UsageError
        For a kind that does not exist, or an option that it does not have.
    """
    if name not in PHANTOMS:
        raise UsageError(f"there is no phantom {name!r}; choose one of {', '.join(PHANTOMS)}")
    try:
        return PHANTOMS[name](seed=seed, index=index, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise UsageError(f"phantom {name}: {error}; see the help of make_{name}") from error
