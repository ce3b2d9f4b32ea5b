"""Retrieval by regions on Cars196, as metric learning has it.

    python -m deepemd_jax.data prepare cars196
    python -m deepemd_jax.main --config=configs/cars196.py

Whole images; classes 1 to 98 train (every tenth of them is held out, to choose
by), 99 to 196 are gallery and queries at once: 8,131 images. Variants, and why
no published number belongs beside this: see `configs/cub_retrieval.py`.
"""

from configs import cub_retrieval


def get_config(arg: str = ""):
  """As CUB's; see the module's docstring."""
  config = cub_retrieval.get_config(arg)
  config.data.name = "cars196"
  return config
