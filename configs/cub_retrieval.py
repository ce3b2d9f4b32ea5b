"""Retrieval by regions on CUB-200-2011, with the protocol of metric learning.

    python -m deepemd_jax data prepare cub_retrieval
    python -m deepemd_jax.main --config=configs/cub_retrieval.py

The images are whole. The first 100 classes are for training; every tenth of
them is held out for validation. The last 100 classes are both gallery and
queries, 5,924 images.

Variants follow a colon: fcn (the default), pyramid, grid, sampling and laptop
(a small network and a short schedule, for two CPU cores).

No published number is comparable, because metric learning starts from networks
trained on ImageNet, at 224 pixels and more. This recipe has not been run to the
end.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the paper's schedule and then retrieval; see the module."""
  config = defaults.get_config()
  config.data.name = "cub_retrieval"
  config.stages = ("pretrain", "metatrain", "retrieve")
  return variants.apply(config, arg, variants.TRAINING)
