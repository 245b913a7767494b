"""What pyproject.toml has no words for: a wheel brings its native code, where there is a C++ compiler that makes it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = Path(__file__).parent / "mixer_lightning" / "kernels"


class BuildPy(build_py):
    """Packages, and the kernels for each level of processor; MIXER_LIGHTNING_LEVELS names others, or none."""

    def run(self) -> None:
        """Compile into what becomes the wheel, never into the checkout."""
        super().run()
        if self.editable_mode:
            return
        spec = importlib.util.spec_from_file_location("compiler", KERNELS / "compiler.py")
        assert spec is not None
        assert spec.loader is not None
        compiler: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compiler)
        asked = os.environ.get("MIXER_LIGHTNING_LEVELS")
        levels = tuple(compiler.LEVELS) if asked is None else tuple(asked.split())
        folder = Path(self.build_lib, "mixer_lightning", "kernels", "prebuilt")
        if levels and compiler.prebuild(folder, levels=levels):
            self.distribution.has_native_code = True


class BdistWheel(bdist_wheel):
    """One wheel for every Python: native code is loaded by ctypes, and knows nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-linux_x86_64 with native code, py3-none-any without."""
        if not getattr(self.distribution, "has_native_code", False):
            return super().get_tag()
        self.root_is_pure = False
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
