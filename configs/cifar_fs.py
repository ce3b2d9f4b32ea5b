"""DeepEMD on CIFAR-FS.

    python -m deepemd_jax data prepare cifar_fs
    python -m deepemd_jax.main --config=configs/cifar_fs.py

The images are those of CIFAR-100, training and test images together, enlarged
from 32x32 pixels: 64/16/20 classes of 600 images (Bertinetto et al. 2019).

Variants follow a colon, as in `configs/cifar_fs.py:grid,5shot`: fcn (the
default), pyramid, grid, sampling, 5shot, 10shot, 10way, ablation and laptop (a
small network and a short schedule, for two CPU cores). 5shot, 10shot, 10way and
ablation test an encoder that is already trained.

Published accuracy, 5-way: none found. A third-party run of the official code
gave 72.8 for 1-shot.

Estimated time, with 3.3 GMAC per image and three times that in training:
pre-training takes 99 PFLOP and meta-training 14 PFLOP. This is 1.6 hours at a
sustained 20 TFLOP/s, or 6.9 days on two CPU cores (29 images per second
forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "cifar_fs"
  # The gray levels of CIFAR-100 from the official code.
  config.image.mean = (129.3, 124.1, 112.4)
  config.image.std = (51.2, 50.6, 51.6)
  return variants.apply(config, arg)
