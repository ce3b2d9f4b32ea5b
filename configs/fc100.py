"""DeepEMD on FC100.

    python -m deepemd_jax data prepare fc100
    python -m deepemd_jax.main --config=configs/fc100.py

CIFAR-100, both halves, 32x32 pixels enlarged: 60/20/20 classes of 600 images
whose superclasses do not overlap (Oreshkin et al. 2018).

Variants stand behind a colon, as in `configs/fc100.py:grid,5shot`: fcn (the
same as none), pyramid, grid, sampling, 5shot, 10shot, 10way, ablation and
laptop (a small network and a short schedule, for two CPU cores).
5shot, 10shot, 10way and ablation test an encoder that is trained already.

Published accuracy, 5-way: 1-shot 46.60 +-0.26, 5-shot 63.22 +-0.71 (the best
kind of nodes; leaderboards).

Time, estimated from 3.3 GMAC an image and three times that in training:
pre-training is 95 PFLOP and meta-training 16, 1.5 hours at a sustained 20
TFLOP/s, 6.7 days on two CPU cores (29 images a second forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """The paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "fc100"
  return variants.apply(config, arg)
