"""A bundle as OpenVINO IR: ``NAME.xml`` and ``NAME.bin``, in full precision, with the contract inside."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vesalius.deploy.contract import KEY, contract_of
from vesalius.deploy.onnx_out import write_onnx
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
    path = Path(path)
    with TemporaryDirectory() as folder:
        between = write_onnx(bundle, Path(folder) / "model.onnx")
        model = library.Core().read_model(str(between))
        model.set_rt_info(json.dumps(contract_of(bundle)), KEY.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Weights stay in float32: acceptance compares to four digits.
        library.save_model(model, str(path), compress_to_fp16=False)
    return path
