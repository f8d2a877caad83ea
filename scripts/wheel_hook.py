"""Puts the native half into a wheel; hatchling calls it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# hatchling loads this file by its path.
sys.path.insert(0, str(Path(__file__).parent))

import native_build


class NativeHalf(BuildHookInterface[Any]):
    """Compiles the package for all processors of this kind, and says what the wheel is for.

    An editable installation gets none: scripts/install.py has put one into the environment.
    """

    def dependencies(self) -> list[str]:
        """Returns the packages that a build needs: none if there is nothing to compile."""
        if native_build.cached("portable") is not None:
            return []
        return ["pip", *native_build.missing_packages()]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the package and the tag. Ends the build in one line if something is missing."""
        if version == "editable":
            return
        self._scratch = tempfile.TemporaryDirectory()
        package = Path(self._scratch.name, native_build.PACKAGE)
        try:
            native_build.build("portable", package)
        except native_build.BuildError as error:
            # A traceback would hide it.
            sys.exit(f"afterword: {error}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{native_build.platform_tag(package)}"
        build_data["force_include"][str(package)] = native_build.PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the package that was copied into the wheel."""
        del build_data, artifact_path
        if version != "editable":
            self._scratch.cleanup()
