"""DeepEMD on CUB-200-2011.

    python -m deepemd_jax data prepare cub
    python -m deepemd_jax.main --config=configs/cub.py

Birds, cut to their bounding boxes: 100/50/50 classes, 5,891/2,932/2,965 images.
The split is FEAT's, which the paper uses; others share few of its test classes.
--config.data.name=cub_full leaves the images whole.

Variants stand behind a colon, as in `configs/cub.py:grid,5shot`: fcn (the same
as none), pyramid, grid, sampling, 5shot, 10shot, 10way, ablation and laptop (a
small network and a short schedule, for two CPU cores). 5shot,
10shot, 10way and ablation test an encoder that is trained already.

Published accuracy, 5-way: 1-shot 79.27 +-0.29, 5-shot 89.80 +-0.51 (the best
kind of nodes; leaderboards).

Time, estimated from 3.3 GMAC an image and three times that in training:
pre-training is 16 PFLOP and meta-training 10, 0.4 hours at a sustained 20
TFLOP/s, 1.6 days on two CPU cores (29 images a second forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """The paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "cub"
  return variants.apply(config, arg)
