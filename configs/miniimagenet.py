"""DeepEMD on miniImageNet.

    python -m deepemd_jax data prepare miniimagenet --from FOLDER
    python -m deepemd_jax.main --config=configs/miniimagenet.py

There are 64/16/20 classes of 600 images, the split of Ravi and Larochelle.
FOLDER is ILSVRC-2012, from which the published lists select the files, or a
ready folder. The name of a ready folder of squares of 84 pixels is
miniimagenet:84, for `prepare` and for --config.data.name.

Variants follow a colon, as in `configs/miniimagenet.py:grid,5shot`: fcn (the
default), pyramid, grid, sampling, 5shot, 10shot, 10way, ablation, cross_cub
(tested on CUB) and laptop (a small network and a short schedule, for two CPU
cores). 5shot, 10shot, 10way, ablation and cross_cub test an encoder that is
already trained.

Published accuracy, 5-way: 1-shot 66.50 (FCN), 67.83 (Grid), 68.77 (Sampling),
+-0.29; 5-shot 82.41, 83.14, 84.13, +-0.53 (official README). Independent runs
of FCN reach 60.5 to 65.5 for 1-shot. Ours reach 61.37 and 77.99
(`docs/RESULTS.md`).

Estimated time, with 3.3 GMAC per image and three times that in training:
pre-training takes 99 PFLOP and meta-training 14 PFLOP. This is 1.6 hours at a
sustained 20 TFLOP/s, or 6.9 days on two CPU cores (29 images per second
forward).
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the paper's schedule; see the module's docstring."""
  config = defaults.get_config()
  config.data.name = "miniimagenet"
  return variants.apply(config, arg, (*variants.COMMON, "cross_cub"))
