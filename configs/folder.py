"""DeepEMD on your own images, with one directory per class.

    python -m deepemd_jax.main --config=configs/folder.py \
        --config.data.folder=/path/to/images --workdir=runs/mine

It trains a quarter-width ResNet-12 on 84x84 images with a schedule for a few
thousand images. Classes are split 64/16/20 into training, validation and test,
or by `--config.data.csv`.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the settings for a few thousand images of the user."""
  config = defaults.get_config()
  config.data.name = "folder"
  config.model.width = 0.25
  config.image.crop_scale = (0.4, 1.0)

  config.pretrain.epochs = 40
  config.pretrain.batch_size = 32
  config.pretrain.lr = 0.05
  config.pretrain.schedule = "cosine"
  config.pretrain.warmup_epochs = 1
  config.pretrain.validate_every = 4

  config.metatrain.epochs = 10
  config.metatrain.schedule = "cosine"
  config.metatrain.validation_episodes = 200
  config.evaluate.episodes = 600
  return variants.apply(config, arg)
