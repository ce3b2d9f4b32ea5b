"""DeepEMD on FC100.

    python -m deepemd_jax data prepare fc100
    python -m deepemd_jax.main --config=configs/fc100.py

The images are those of CIFAR-100, training and test images together, enlarged
from 32x32 pixels: 60/20/20 classes of 600 images. The superclasses of the
splits do not overlap (Oreshkin et al. 2018).

Variants follow a colon, as in `configs/fc100.py:grid,5shot`: fcn (the default),
pyramid, grid, sampling, 5shot, 10shot, 10way, ablation and laptop (a small
network and a short schedule, for two CPU cores). 5shot, 10shot, 10way and
ablation test an encoder that is already trained.

Published accuracy, 5-way: 1-shot 46.60 +-0.26, 5-shot 63.22 +-0.71 (the best
kind of nodes; leaderboards).

Estimated time, with 3.3 GMAC per image and three times that in training:
pre-training takes 95 PFLOP and meta-training 16 PFLOP. This is 1.5 hours at a
sustained 20 TFLOP/s, or 6.7 days on two CPU cores (29 images per second
forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "fc100"
  return variants.apply(config, arg)
