"""Named changes to a config, after a colon: `configs/cub.py:grid,5shot`.

Each variant is short for a few flags of the command line. Variants that change
the training become part of the run's name, and so of its default workdir
(`runs/cub-grid`). Variants that only change the test share the trained encoder
of the run without them (`runs/cub`).
"""

from ml_collections import ConfigDict

_TRAINS = ("pretrain", "metatrain")


def _fcn(config):
  config.nodes.kind = "fcn"


def _pyramid(config):
  config.nodes.kind = "fcn"
  config.nodes.pyramid = (2, 1)


def _grid(config):
  config.nodes.kind = "grid"


def _sampling(config):
  config.nodes.kind = "sampling"


def _photographs(config):
  # The encoder was trained on photographs and is frozen, so no stage trains it.
  config.model.backbone = "efficientnet_lite0"
  config.image.size = 0
  config.image.mean = config.image.std = ()
  config.image.crop = "whole"
  config.nodes.kind = "grid"
  config.nodes.ratio = 1.2
  config.nodes.cells = 5
  config.stages = tuple(x for x in config.stages if x not in _TRAINS)


def _shots(count):
  def change(config):
    config.episode.shot = count
    config.evaluate.episodes = 600

  return change


def _ten_way(config):
  # Training keeps its number of classes; the test has ten.
  config.metatrain.way = config.episode.way
  config.episode.way = 10


def _ablation(config):
  config.evaluate.heads = (
    *("deepemd", "deepemd_equal_weights", "deepemd_l2", "deepemd_sinkhorn"),
    *("deepemd_qp", "chamfer", "prototype"),
  )
  config.evaluate.more = ()
  config.evaluate.variants = ()


def _cross_cub(config):
  config.data.test_name = "cub"


# Epochs of pre-training. Most data sets have about 38,400 training images, and
# get 6 epochs. For others, the total number of images is about the same, except
# for tieredImageNet, which has more in one epoch.
_LAPTOP_EPOCHS = {
  "cub": 40,
  "cub_retrieval": 40,
  "cars196": 30,
  "stanford_online_products": 4,
  "tieredimagenet": 1,
}


def _laptop(config):
  # This variant is for two CPU cores. Pre-training sees crops of 32 pixels.
  # Tests see images of 40 pixels, whose map has 5 x 5 cells.
  config.model.width = 0.5
  config.model.pools = 3
  config.image.size = 40
  config.image.pretrain_size = 32
  config.image.crop = "whole"
  config.image.crop_scale = (0.4, 1.0)
  data = config.data.name.partition(":")[0]
  config.pretrain.epochs = _LAPTOP_EPOCHS.get(data, 6)
  config.pretrain.validate_every = max(1, config.pretrain.epochs // 3)
  config.pretrain.label_smoothing = 0.1
  # There are few steps, so the rate is higher. It was chosen on validation
  # classes of CIFAR-FS.
  config.metatrain.epochs = 4
  config.metatrain.lr = 5e-3
  config.metatrain.validation_episodes = 200
  for stage in (config.pretrain, config.metatrain):
    stage.schedule = "cosine"
  config.pretrain.warmup_epochs = 1 if config.pretrain.epochs > 1 else 0
  config.evaluate.episodes = 600
  config.evaluate.more = ("5-shot",)
  config.evaluate.more_episodes = 600


# Name -> (the function that changes the config, the group of which only one may
# be taken, whether it changes the training).
_KNOWN = {
  "fcn": (_fcn, "nodes", False),
  "pyramid": (_pyramid, "nodes", True),
  "grid": (_grid, "nodes", True),
  "sampling": (_sampling, "nodes", True),
  "photographs": (_photographs, "nodes", True),
  "5shot": (_shots(5), "shots", False),
  "10shot": (_shots(10), "shots", False),
  "10way": (_ten_way, "way", False),
  "ablation": (_ablation, "heads", False),
  "cross_cub": (_cross_cub, "test data", False),
  "laptop": (_laptop, "size", True),
}
COMMON = tuple(name for name in _KNOWN if name != "cross_cub")
# The variants for configs that train nothing.
FROZEN = ("5shot", "10shot", "10way", "ablation")
# The variants that do not concern few-shot tests.
TRAINING = ("fcn", "pyramid", "grid", "sampling", "photographs", "laptop")


def apply(config: ConfigDict, arg: str, names=COMMON) -> ConfigDict:
  """Applies the variants that `arg` names to a config.

  Args:
    config: the config, which is changed in place.
    arg: the names after the colon of --config, separated by commas; "" changes
      nothing.
    names: the variants that this config knows.

  Returns:
    The config, whose field `variant` names the variants that change the
    training.

  Raises:
    ValueError: a variant is unknown, or two of them contradict each other.
  """
  asked = [name.strip() for name in arg.split(",") if name.strip()]
  taken: dict[str, str] = {}
  for name in asked:
    if name not in names:
      raise ValueError(
        f"config variant {name!r} is not known; use {', '.join(names)}"
      )
    group = _KNOWN[name][1]
    if taken.setdefault(group, name) != name:
      raise ValueError(
        f"config variants {taken[group]!r} and {name!r} contradict each other; "
        "use one of them"
      )
  chosen = [name for name in _KNOWN if name in asked]
  for name in chosen:
    _KNOWN[name][0](config)
  config.variant = "-".join(name for name in chosen if _KNOWN[name][2])
  return config
