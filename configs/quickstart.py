"""DeepEMD from data to results in minutes, on two CPU cores.

    python -m deepemd_jax.main --config=configs/quickstart.py

The data set is glyph_clutter, which is generated. The network is a ResNet-12 an
eighth as wide as the paper's. Scenes of 64x64 pixels are enlarged to 92x92,
which gives 5x5 = 25 nodes. After pre-training and meta-training, DeepEMD is
compared with two baselines on 600 test episodes and under twelve clutter
conditions. Settings were chosen on validation classes.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the quickstart's settings; see the module's docstring."""
  config = defaults.get_config()
  config.image.size = 92
  config.image.pretrain_size = 64
  config.image.crop = "whole"
  config.image.crop_scale = (0.4, 1.0)
  config.image.flip = False
  config.model.width = 0.125

  config.pretrain.epochs = 16
  config.pretrain.batch_size = 32
  config.pretrain.optimizer = "adamw"
  config.pretrain.lr = 0.005
  config.pretrain.schedule = "cosine"
  config.pretrain.warmup_epochs = 1
  config.pretrain.validate_every = 4
  config.pretrain.weight_decay = 1e-4
  config.pretrain.validation_episodes = 100

  config.metatrain.epochs = 3
  config.metatrain.steps = 30
  config.metatrain.optimizer = "adamw"
  config.metatrain.lr = 0.0002
  config.metatrain.schedule = "cosine"
  config.metatrain.validation_episodes = 200

  config.evaluate.episodes = 600
  config.evaluate.more = ("5-shot", "grid")
  config.evaluate.variants = tuple(
    f"d{distractors}_{background}"
    for background in ("plain", "relief", "busy")
    for distractors in range(4)
  )
  return variants.apply(config, arg)
