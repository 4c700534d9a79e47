"""An exported page is believed only after it gave the bundle's answers in a browser, opened from the disk, offline."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vesalius.core.errors import AcceptanceError
from vesalius.core.image import Image
from vesalius.deploy.accept import Trial, accept
from vesalius.deploy.chromium import Browser, BrowserError, Tab, find_browser
from vesalius.deploy.web_out import WebFolder
from vesalius.deploy.web_runtime import VERSION
from vesalius.io.nifti_out import write_nifti
from vesalius.predict.bundle import Bundle

# What a page may use without asking anybody.
_INSIDE = ("blob:", "data:", "about:")
# A large volume on a slow machine takes its time.
_SECONDS = 1800


class WebPage:
    """The page of a folder in a browser, asked case by case.

    Parameters
    ----------
    browser
        A running one.
    url
        Of its ``index.html``, a file or on a server.
    scratch
        A folder for cases that are handed over in another format.

    Raises
    ------
    AcceptanceError
        If the page or its model does not start.
    """

    def __init__(self, browser: Browser, url: str, scratch: Path) -> None:
        self.url, self._scratch, self._count = url, scratch, 0
        self.tab = Tab(browser)
        try:
            self.tab.open(url)
            wrong = self.tab.evaluate("VESALIUS.page.ready")
        except BrowserError as error:
            raise AcceptanceError(f"{url}: the page does not run: {error}") from error
        if wrong is not None:
            raise AcceptanceError(f"{url}: the model does not start in the page: {wrong}")
        self._regions = self.tab.evaluate("VESALIUS.contract.decide") == "regions"

    def answer(self, path: Path) -> dict[str, Any]:
        """What the page says about a file.

        Returns
        -------
        dict
            Of a classification ``probabilities`` and ``class`` or ``classes``, of a segmentation ``structures`` and
            ``mask`` (``(*S)`` on the grid of the file, overlapping structures ``(K, *S)``), and ``ms``; or ``error``.
        """
        self.tab.choose("#file", path)
        found = dict(self.tab.evaluate(f"VESALIUS.page.answer({self._count})", seconds=_SECONDS))
        self._count += 1
        if "structures" in found:
            mask = self.tab.evaluate("VESALIUS.page.mask()")
            kind = {1: "u1", 2: "<u2", 4: "<i4"}[mask["width"]]
            layers = np.frombuffer(base64.b64decode(mask["letters"]), kind).reshape(mask["shape"])
            found["mask"] = layers if self._regions else layers[0]
        return found

    def ask(self, trial: Trial, image: Image) -> tuple[dict[str, Any], str]:
        """The answer to a case, and who read it: the page from its file, or Vesalius, which hands it over as NIfTI.

        Raises
        ------
        AcceptanceError
            If the page cannot compute it.
        """
        if trial.path is not None and reads_exactly(trial.path):
            found = self.answer(trial.path)
            if "error" not in found:
                return found, "page"
        found = self.answer(write_nifti(image, self._scratch / "case.nii"))
        if "error" in found:
            raise AcceptanceError(f"{self.url}: no answer to case {trial.case_id}: {found['error']}")
        return found, "vesalius"

    def strangers(self) -> list[str]:
        """Addresses outside of its folder that the page asked for."""
        home = self.url.rpartition("/")[0] + "/"
        return [url for url in self.tab.requests() if not url.startswith((home, *_INSIDE))]


def reads_exactly(path: Path) -> bool:
    """Whether the page has a decoder of its own for a file (and does not leave it to the browser)."""
    with path.open("rb") as file:
        head = file.read(352)
    return head.startswith((b"\x89PNG", b"\x1f\x8b")) or head[128:132] == b"DICM" or head[344:348] == b"n+1\0"


def accept_web(
    made: WebFolder, bundle: Bundle, trials: Sequence[Trial], *, tolerance: float | None = None
) -> dict[str, Any]:
    """Open the page from the disk, choose the cases one by one and compare; the record that lies in the folder.

    Where no Chromium is found or it does not start, the same model is compared by ONNX Runtime; the record then has
    ``browser`` None and says why in ``browser_why``.

    Raises
    ------
    AcceptanceError
        If the page differs from the bundle, does not run, or asks for anything outside of its folder.
    DataError
        If no case can be read.
    """
    facts: dict[str, Any] = {"runtime": f"onnxruntime-web {VERSION}", "browser": None}
    program = find_browser()
    why = "no Chromium was found"
    if program is not None:
        # A browser that has just ended may still write to its profile.
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            profile, scratch = Path(folder) / "profile", Path(folder) / "cases"
            profile.mkdir()
            scratch.mkdir()
            try:
                browser = Browser(program, profile)
            except BrowserError as error:
                why = str(error)
            else:
                with browser:
                    record = _in_browser(browser, made, bundle, trials, scratch, tolerance)
                return record | facts | {"browser": browser.version}
    return accept(made, bundle, trials, tolerance=tolerance) | facts | {"browser_why": why}


def _in_browser(
    browser: Browser, made: WebFolder, bundle: Bundle, trials: Sequence[Trial], scratch: Path, tolerance: float | None
) -> dict[str, Any]:
    try:
        page = WebPage(browser, (made.path.resolve() / "index.html").as_uri(), scratch)
        record = accept(made, bundle, trials, tolerance=tolerance, ask=page.ask)
        strangers = page.strangers()
    except BrowserError as error:
        raise AcceptanceError(f"{made.path}: the browser gave up: {error}") from error
    if strangers:
        raise AcceptanceError(f"{made.path}: the page asked for {strangers[0]}; it must ask for nothing outside")
    return record
