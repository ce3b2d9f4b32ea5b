"""DeepEMD on tieredImageNet.

    python -m deepemd_jax data prepare tieredimagenet --from FOLDER
    python -m deepemd_jax.main --config=configs/tieredimagenet.py

351/97/160 classes of 20/6/8 superclasses, 779,165 images. FOLDER is ILSVRC-2012
or a folder that is ready. Images are decoded when they are read: set
--config.data.workers to half the number of CPU cores.

Variants stand behind a colon, as in `configs/tieredimagenet.py:grid,5shot`: fcn
(the same as none), pyramid, grid, sampling, 5shot, 10shot, 10way, ablation and
laptop (a small network and one epoch, for two CPU cores).
5shot, 10shot, 10way and ablation test an encoder that is trained already.

Published accuracy, 5-way: 1-shot 72.65 (FCN), 73.13 (Grid), 74.29 (Sampling),
+-0.32; 5-shot 86.03, 87.08, 86.98, +-0.60 (official README).

Time, estimated from 3.3 GMAC an image and three times that in training:
pre-training is 1164 PFLOP and meta-training 90, 17.4 hours at a sustained 20
TFLOP/s, 76.3 days on two CPU cores (29 images a second forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """The paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "tieredimagenet"
  return variants.apply(config, arg)
