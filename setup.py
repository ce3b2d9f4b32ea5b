"""What pyproject.toml cannot say: which folders the wheel holds.

The recipes of the top-level folder `configs/` are installed inside the package,
so that `--config=cub` works without a checkout.
"""

import setuptools

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=["deepemd_jax*"]),
    "deepemd_jax.recipes",
  ],
  package_dir={"deepemd_jax.recipes": "configs"},
)
