"""Retrieval by regions on CUB-200-2011, as metric learning has it.

    python -m deepemd_jax data prepare cub_retrieval
    python -m deepemd_jax.main --config=configs/cub_retrieval.py

Whole images; the first 100 classes train (every tenth of them is held out, to
choose by), the last 100 are gallery and queries at once: 5,924 images.

Variants stand behind a colon: fcn (the same as none), pyramid, grid, sampling,
laptop (a small network and a short schedule, for two CPU cores).

No published number belongs beside this: metric learning starts from networks
trained on ImageNet, at 224 pixels and more. Not run to the end here.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """The paper's schedule, then retrieval; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "cub_retrieval"
  config.stages = ("pretrain", "metatrain", "retrieve")
  return variants.apply(config, arg, variants.TRAINING)
