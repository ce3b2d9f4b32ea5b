"""DeepEMD on miniImageNet.

    python -m deepemd_jax data prepare miniimagenet --from FOLDER
    python -m deepemd_jax.main --config=configs/miniimagenet.py

64/16/20 classes of 600 images, the split of Ravi and Larochelle. FOLDER is
ILSVRC-2012, out of which the published file lists cut it, or a folder that is
ready. One of squares of 84 pixels is miniimagenet:84, for `prepare` and for
--config.data.name.

Variants stand behind a colon, as in `configs/miniimagenet.py:grid,5shot`: fcn
(the same as none), pyramid, grid, sampling, 5shot, 10shot, 10way, ablation,
cross_cub (tested on CUB) and laptop (a small network and a short schedule,
for two CPU cores). 5shot, 10shot, 10way, ablation and cross_cub
test an encoder that is trained already.

Published accuracy, 5-way: 1-shot 66.50 (FCN), 67.83 (Grid), 68.77 (Sampling),
+-0.29; 5-shot 82.41, 83.14, 84.13, +-0.53 (official README). Independent runs
of FCN land at 60.5 to 65.5, and ours at 61.37 and 77.99 (`docs/RESULTS.md`).

Time, estimated from 3.3 GMAC an image and three times that in training:
pre-training is 99 PFLOP and meta-training 14, 1.6 hours at a sustained 20
TFLOP/s, 6.9 days on two CPU cores (29 images a second forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """The paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "miniimagenet"
  return variants.apply(config, arg, (*variants.COMMON, "cross_cub"))
