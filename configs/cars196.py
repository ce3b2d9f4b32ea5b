"""Retrieval by regions on Cars196, as metric learning has it.

    python -m deepemd_jax data prepare cars196 --from FOLDER
    python -m deepemd_jax.main --config=configs/cars196.py

FOLDER holds car_ims.tgz and cars_annos.mat; or, as mirrors have it,
cars_train/, cars_test/ and devkit/, and cars_test_annos_withlabels.mat in there
or beside it.

Whole images; classes 1 to 98 train (every tenth of them is held out, to choose
by), 99 to 196 are gallery and queries at once: 8,131 images. Variants, and why
no published number belongs beside this: see `configs/cub_retrieval.py`.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """The paper's schedule, then retrieval; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "cars196"
  config.stages = ("pretrain", "metatrain", "retrieve")
  return variants.apply(config, arg, variants.TRAINING)
