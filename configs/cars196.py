"""Retrieval by regions on Cars196, with the protocol of metric learning.

    python -m deepemd_jax data prepare cars196 --from FOLDER
    python -m deepemd_jax.main --config=configs/cars196.py

FOLDER contains car_ims.tgz and cars_annos.mat. The folder of a mirror contains
cars_train/, cars_test/ and devkit/ instead, and cars_test_annos_withlabels.mat
in devkit/ or beside it.

The images are whole. Classes 1 to 98 are for training; every tenth of them is
held out for validation. Classes 99 to 196 are both gallery and queries, 8,131
images. `configs/cub_retrieval.py` lists the variants and says why no published
number is comparable.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the paper's schedule and then retrieval; see the module."""
  config = defaults.get_config()
  config.data.name = "cars196"
  config.stages = ("pretrain", "metatrain", "retrieve")
  return variants.apply(config, arg, variants.TRAINING)
