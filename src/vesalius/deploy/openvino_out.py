"""A bundle as OpenVINO IR: ``NAME.xml`` and ``NAME.bin``, in full precision, with the contract inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vesalius.deploy.contract import KEY, SEAL_KEY, contract_of
from vesalius.deploy.onnx_out import onnx_model
from vesalius.deploy.seal import BLANK, seal_file
from vesalius.predict.backends import import_openvino
from vesalius.predict.bundle import Bundle


def write_openvino(bundle: Bundle, path: str | Path) -> Path:
    """Convert the ONNX form of the bundle; `path` ends with ``.xml``.

    Raises
    ------
    MissingExtra
        Without ``vesalius[openvino]`` or ``vesalius[onnx]``.
    AcceptanceError
        If the network cannot be captured.
    """
    library: Any = import_openvino()
    contract = contract_of(bundle)
    model = library.Core().read_model(onnx_model(bundle, contract).SerializeToString())
    model.set_rt_info(json.dumps(contract), KEY.split("."))
    model.set_rt_info(BLANK, SEAL_KEY.split("."))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Weights stay in float32: acceptance compares to four digits.
    library.save_model(model, str(path), compress_to_fp16=False)
    seal_file(path, path.with_suffix(".bin"))
    return path
