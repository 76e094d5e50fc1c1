"""Reads ``report.json`` of a bundle and verifies it against the manifest's hash."""

import json
from pathlib import Path
from typing import Any

from index.bundle.integrity import verify_file
from index.bundle.manifest import REPORT_FILE, Manifest
from index.errors import BundleInvalid, BundleNotFound


def read_report(bundle: Path) -> tuple[Manifest, dict[str, Any]]:
    """Read and verify a bundle's report.

    Args:
        bundle: the bundle's directory.

    Returns:
        The manifest and the content of ``report.json``.

    Raises:
        BundleNotFound: the directory does not exist.
        BundleInvalid: the manifest or the report is missing, altered or not a JSON object.
    """
    if not bundle.is_dir():
        raise BundleNotFound(f"{bundle}: there is no bundle; list what is published with `vlm2rec index list`")
    manifest = Manifest.read(bundle)
    verify_file(bundle, manifest, REPORT_FILE)
    path = bundle / REPORT_FILE
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleInvalid(f"{path}: not a readable report ({error}); build the bundle again") from error
    if not isinstance(report, dict):
        raise BundleInvalid(f"{path}: must be a JSON object, got {type(report).__name__}; build the bundle again")
    return manifest, report
