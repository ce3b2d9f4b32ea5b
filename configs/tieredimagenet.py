"""DeepEMD on tieredImageNet.

    python -m deepemd_jax data prepare tieredimagenet --from FOLDER
    python -m deepemd_jax.main --config=configs/tieredimagenet.py

There are 351/97/160 classes of 20/6/8 superclasses and 779,165 images. FOLDER
is ILSVRC-2012 or a ready folder. Images are decoded whenever they are read, so
set --config.data.workers to half the number of CPU cores.

Variants follow a colon, as in `configs/tieredimagenet.py:grid,5shot`: fcn (the
default), pyramid, grid, sampling, 5shot, 10shot, 10way, ablation and laptop (a
small network and one epoch, for two CPU cores). 5shot, 10shot, 10way and
ablation test an encoder that is already trained.

Published accuracy, 5-way: 1-shot 72.65 (FCN), 73.13 (Grid), 74.29 (Sampling),
+-0.32; 5-shot 86.03, 87.08, 86.98, +-0.60 (official README).

Estimated time, with 3.3 GMAC per image and three times that in training:
pre-training takes 1164 PFLOP and meta-training 90 PFLOP. This is 17.4 hours at
a sustained 20 TFLOP/s, or 76.3 days on two CPU cores (29 images per second
forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "tieredimagenet"
  return variants.apply(config, arg)
