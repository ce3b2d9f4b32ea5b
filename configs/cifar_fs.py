"""DeepEMD on CIFAR-FS.

    python -m deepemd_jax data prepare cifar_fs
    python -m deepemd_jax.main --config=configs/cifar_fs.py

CIFAR-100, both halves, 32x32 pixels enlarged: 64/16/20 classes of 600 images
(Bertinetto et al. 2019).

Variants stand behind a colon, as in `configs/cifar_fs.py:grid,5shot`: fcn (the
same as none), pyramid, grid, sampling, 5shot, 10shot, 10way, ablation and
laptop (a small network and a short schedule, for two CPU cores).
5shot, 10shot, 10way and ablation test an encoder that is trained already.

Published accuracy, 5-way: none found; somebody's run of the official code gave
72.8 for 1-shot.

Time, estimated from 3.3 GMAC an image and three times that in training:
pre-training is 99 PFLOP and meta-training 14, 1.6 hours at a sustained 20
TFLOP/s, 6.9 days on two CPU cores (29 images a second forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """The paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "cifar_fs"
  # Gray levels of CIFAR-100, as the official code has them.
  config.image.mean = (129.3, 124.1, 112.4)
  config.image.std = (51.2, 50.6, 51.6)
  return variants.apply(config, arg)
