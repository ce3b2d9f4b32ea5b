"""What pyproject.toml cannot say: which folders the wheel holds, and how the
native network simplex is compiled.

The recipes of the top-level folder `configs/` are installed inside the package,
so that `--config=cub` works without a checkout. Where there is no C++ compiler,
the package is installed without the native code.
"""

import pathlib
import runpy

import setuptools

_NATIVE = "deepemd_jax/emd/native"
# By its path: the package itself needs JAX, which need not be here.
_build = runpy.run_path(
  str(pathlib.Path(__file__).parent / _NATIVE / "build.py")
)

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=["deepemd_jax*"]),
    "deepemd_jax.recipes",
  ],
  package_dir={"deepemd_jax.recipes": "configs"},
  ext_modules=[
    setuptools.Extension(
      f"{_NATIVE.replace('/', '.')}.{_build['NAME']}",
      [f"{_NATIVE}/{name}" for name in _build["SOURCES"]],
      include_dirs=[_build["include_dir"]()],
      extra_compile_args=list(_build["FLAGS"]),
      language="c++",
      optional=True,
    )
  ],
)
