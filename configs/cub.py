"""DeepEMD on CUB-200-2011.

    python -m deepemd_jax data prepare cub
    python -m deepemd_jax.main --config=configs/cub.py

The images are birds, cropped to their bounding boxes: 100/50/50 classes,
5,891/2,932/2,965 images. The paper uses this split of FEAT. Other splits share
few of its test classes. --config.data.name=cub_full keeps the images whole.

Variants follow a colon, as in `configs/cub.py:grid,5shot`: fcn (the default),
pyramid, grid, sampling, 5shot, 10shot, 10way, ablation and laptop (a small
network and a short schedule, for two CPU cores). 5shot, 10shot, 10way and
ablation test an encoder that is already trained.

Published accuracy, 5-way: 1-shot 79.27 +-0.29, 5-shot 89.80 +-0.51 (the best
kind of nodes; leaderboards).

Estimated time, with 3.3 GMAC per image and three times that in training:
pre-training takes 16 PFLOP and meta-training 10 PFLOP. This is 0.4 hours at a
sustained 20 TFLOP/s, or 1.6 days on two CPU cores (29 images per second
forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "cub"
  return variants.apply(config, arg)
