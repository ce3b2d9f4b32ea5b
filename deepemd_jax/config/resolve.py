"""From a config to things: the one file that maps names to objects."""

import copy
import difflib
import functools
import os
import re

from deepemd_jax.data.published import catalogue
from deepemd_jax.errors import InputError

SPLITS = ("train", "val", "test")
SOLVERS = (
  "auto",
  "interior_point",
  "network_simplex",
  "regularized_qp",
  "sinkhorn",
)
NODES = ("fcn", "grid", "sampling")
PRECISIONS = ("float32", "bfloat16")
HEADS = (
  "deepemd",
  "deepemd_equal_weights",
  "deepemd_l2",
  "deepemd_sinkhorn",
  "deepemd_qp",
  "deepemd_mean",
  "deepemd_nearest",
  "prototype",
  "chamfer",
)


def source(config, variant: str = "default", split: str = ""):
  """The data source of `config.data`, for `split`; see `data.datasets`."""
  from deepemd_jax.data import sources

  name = config.data.name
  if split == "test" and config.data.test_name:
    name = config.data.test_name
  directory = os.path.abspath(
    os.path.expanduser(config.data.directory or sources.default_directory())
  )
  if name == "glyph_clutter":
    return sources.GlyphClutterSource(directory, variant=variant)
  if variant != "default":
    raise InputError(
      f"data set {name!r} has no variant {variant!r}; set "
      "config.evaluate.variants to ()"
    )
  if name.partition(":")[0] != "folder":
    return sources.BenchmarkSource(name, directory)
  return sources.FolderSource(
    config.data.folder,
    directory,
    side=_folder_side(name, config.image.size),
    fractions=tuple(config.data.fractions),
    csv=config.data.csv or None,
    seed=config.seed,
  )


def _folder_side(name: str, size: int) -> int:
  """Side of the square copies of a user's images, 0 for none.

  Random crops of copies of 160 are within 2 gray levels, on average, of crops
  of the originals where they are 84 wide (`benchmarks/data.py`).
  """
  suffix = name.partition(":")[2]
  if not suffix:
    return -(-size * 160 // 84)
  if suffix == "original":
    return 0
  if suffix.isdecimal() and 16 <= int(suffix) <= 1024:
    return int(suffix)
  raise InputError(
    f"data set {name!r}: {suffix!r} is no size of stored copies; use "
    "folder:original or a side of 16 to 1024 pixels, such as folder:160"
  )


def _check_name(name: str, size: int) -> None:
  """Refuses what is not the name of a data set."""
  plain = name.partition(":")[0]
  if plain == "folder":
    _folder_side(name, size)
  elif plain in catalogue.BENCHMARKS:
    catalogue.parse(name)
  elif name != "glyph_clutter":
    known = ("glyph_clutter", "folder", *catalogue.BENCHMARKS)
    near = difflib.get_close_matches(plain, known, 2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
      f"there is no data set {name!r}; {hint}There are {', '.join(known)}"
    )


def training_episode(config) -> dict[str, int]:
  """Way, shot and query of training and validation episodes."""
  return {
    name: config.metatrain[name] or config.episode[name]
    for name in ("way", "shot", "query")
  }


def solver(config, name: str = "", epsilon: float = 0.0):
  """The EMD solver `name`, or `config.emd.solver`; None lets `emd` choose.
  Sinkhorn's `epsilon` is `config.emd.epsilon`, unless another is given."""
  import jax

  from deepemd_jax import emd

  name = name or config.emd.solver
  if name == "network_simplex" and jax.default_backend() == "cpu":
    if jax.local_device_count() > 1:
      raise InputError(
        "config.emd.solver is 'network_simplex', which cannot serve the "
        f"{jax.local_device_count()} CPU devices of this process; use "
        "interior_point, or one device a process"
      )
  if name == "interior_point":
    return emd.InteriorPoint()
  if name == "network_simplex":
    return emd.NetworkSimplex()
  if name == "regularized_qp":
    return emd.RegularizedQP(config.emd.form, config.emd.l2_strength)
  if name == "sinkhorn":
    return emd.Sinkhorn(epsilon or config.emd.epsilon)
  return None


def schedule(stage, steps_per_epoch: int):
  """Learning rate by step, from a stage's config (pretrain or metatrain)."""
  import optax

  total = stage.epochs * steps_per_epoch
  warmup = stage.warmup_epochs * steps_per_epoch
  if stage.schedule == "cosine":
    after = optax.cosine_decay_schedule(stage.lr, max(total - warmup, 1))
  else:
    after = optax.exponential_decay(
      stage.lr,
      stage.decay_every * steps_per_epoch,
      stage.decay_rate,
      staircase=True,
    )
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, stage.lr, warmup)
  return optax.join_schedules([rise, after], [warmup])


def optimizer(stage, steps_per_epoch: int):
  """A stage's optimizer. "sgd" has Nesterov momentum 0.9 and L2 decay on
  everything, batch norm included, as the official code; "adamw" is optax's."""
  import optax

  lr = schedule(stage, steps_per_epoch)
  if stage.optimizer == "adamw":
    return optax.adamw(lr, weight_decay=stage.weight_decay)
  return optax.chain(
    optax.add_decayed_weights(stage.weight_decay),
    optax.sgd(lr, momentum=0.9, nesterov=True),
  )


def normalize(config):
  """Gray levels [..., 3] to network input; works on NumPy and JAX arrays."""
  import numpy as np

  mean = np.array(config.image.mean, np.float32)
  std = np.array(config.image.std, np.float32)
  return lambda images: (images - mean) / std


def random_views(config, images, size: int):
  """Training views, host side: `(rng, rows, share=all) -> {"images", "boxes",
  "flip"}`.

  Random resized crops are drawn in the original image's coordinates, flips with
  probability 1/2 where `config.image.flip`; `crop` cuts them on the device,
  `size` pixels wide. Arrays have the shape of `rows[share]` in front: what is
  random is drawn for all rows, so that it does not depend on the share. Can be
  pickled, as can all views.
  """
  return functools.partial(
    _views, images, size, _random_boxes(config), _flips(config)
  )


def episode_views(config, images):
  """As `random_views`, of the kind that `config.nodes` matches: Grid and
  Sampling have one more axis, the crops, behind `rows` in boxes and flips."""
  spec = config.nodes
  boxes = {
    "fcn": _random_boxes(config),
    "grid": functools.partial(
      _grid_boxes, cells=tuple(spec.grid), ratio=tuple(spec.train_ratio)
    ),
    "sampling": _random_boxes(config, spec.patches),
  }[spec.kind]
  size = config.image.size
  return functools.partial(_views, images, size, boxes, _flips(config))


def _views(images, size, draw, flips, rng, rows, share=slice(None)):
  """`draw(rng, sizes [N, 2])` gives boxes [N, 4] or [N, crops, 4]."""
  boxes = draw(rng, images.sizes[rows.ravel()])
  boxes = boxes.reshape(*rows.shape, *boxes.shape[1:])
  flip = rng.random(boxes.shape[:-1]) < flips
  pixels, boxes = images.cut(rows[share], boxes[share], size)
  return {"images": pixels, "boxes": boxes, "flip": flip[share]}


def _flips(config) -> float:
  return 0.5 if config.image.flip else 0.0


def _random_boxes(config, crops: int = 0):
  return functools.partial(
    _random_crops,
    crops=crops,
    scale=tuple(config.image.crop_scale),
    ratio=tuple(config.image.crop_ratio),
  )


def _random_crops(rng, sizes, *, crops, **ranges):
  """One box an image, or several."""
  from deepemd_jax.data import views

  if not crops:
    return views.random_resized_crop(rng, sizes, **ranges)
  boxes = views.random_resized_crop(rng, sizes.repeat(crops, 0), **ranges)
  return boxes.reshape(len(sizes), crops, 4)


def _grid_boxes(rng, sizes, *, cells, ratio):
  from deepemd_jax.data import views

  ratios = rng.uniform(*ratio, (len(sizes), len(cells)))
  return views.grid_boxes(sizes, cells, ratios)


def evaluation_crops(config, images):
  """Grid's and Sampling's crops at test time: `(rows, episode=None) -> (boxes,
  flip)`, in pixels of the originals.

  Those of an image are a function of (seed, row): it is encoded once. With an
  episode's number Sampling draws others for each. Shapes [len(rows), crops, 4]
  and [len(rows), crops].
  """
  import numpy as np

  from deepemd_jax.data import views

  spec = config.nodes
  several = _random_boxes(config, spec.test_patches or spec.patches)

  def draw(rows, episode=None):
    sizes = images.sizes[rows]
    if spec.kind == "grid":
      ratios = np.full((len(sizes), len(spec.grid)), spec.ratio)
      boxes = views.grid_boxes(sizes, spec.grid, ratios)
      return boxes, np.zeros(boxes.shape[:2], bool)
    drawn, flips = [], []
    for row, size in zip(rows, sizes, strict=True):
      again = [] if episode is None else [episode]
      rng = np.random.default_rng([config.seed, 4, row, *again])
      drawn.append(several(rng, size[None]))
      flips.append(rng.random(drawn[-1].shape[1]) < _flips(config))
    return np.concatenate(drawn), np.stack(flips)

  return draw


def crop(config, size: int):
  """The device side of `random_views`: views to network input.

  {"images": [..., S, S, 3], "boxes": [..., 4], "flip": [...]} to
  [..., size, size, 3]; boxes and flips may have one more axis than images,
  several crops of the same one.
  """
  import jax.numpy as jnp

  from deepemd_jax.data import views

  scale = normalize(config)

  def cut(drawn):
    images, boxes, flip = drawn["images"], drawn["boxes"], drawn["flip"]
    if flip.ndim > images.ndim - 3:
      images = jnp.broadcast_to(
        images[..., None, :, :, :], (*flip.shape, *images.shape[-3:])
      )
    pixels = views.crop_resize(
      images.reshape(-1, *images.shape[-3:]),
      boxes.reshape(-1, 4),
      flip.reshape(-1),
      size=size,
    )
    return scale(pixels.reshape(*flip.shape, size, size, 3))

  return cut


def evaluation_side(config) -> int:
  """Side of whole images that `evaluation_view` does not resize."""
  from deepemd_jax.data import views

  size = config.image.size
  return size if config.image.crop == "whole" else views.large_side(size)


def evaluation_view(config):
  """uint8 [N, H, W, 3] to network input [N, size, size, 3]: no randomness."""
  import jax.numpy as jnp

  from deepemd_jax.data import views

  scale = normalize(config)
  size = config.image.size

  def view(images):
    if config.image.crop == "center":
      return scale(views.evaluation_images(images, size))
    count, height, width = images.shape[:3]
    boxes = jnp.tile(jnp.array([0.0, 0.0, width, height]), (count, 1))
    flip = jnp.zeros(count, bool)
    return scale(views.crop_resize(images, boxes, flip, size=size))

  return view


def check(config) -> None:
  """Refuses a config that cannot run; reads no data, imports no JAX.

  Raises:
    InputError: all that is wrong with the values of single fields, in one line.
  """
  problems = []

  def require(field: str, holds: bool, rule: str):
    if not holds:
      value = config
      for part in field.split("."):
        value = value[part]
      problems.append(f"config.{field} is {value!r}; {rule}")

  def one_of(field, value, names):
    require(field, value in names, f"use one of {', '.join(names)}")

  stages = ("pretrain", "metatrain", "evaluate", "retrieve")
  require("stages", bool(config.stages), f"name some of {', '.join(stages)}")
  for name in config.stages:
    one_of("stages", name, stages)
  for field in ("name", "test_name"):
    name = config.data[field]
    if field == "test_name" and not name:
      continue
    try:
      _check_name(name, config.image.size)
    except InputError as error:
      problems.append(f"config.data.{field}: {error}")
    if name.partition(":")[0] == "folder":
      require("data.folder", bool(config.data.folder), "name your image folder")
  require("data.workers", config.data.workers >= 0, "must be at least 0")
  require("seed", config.seed >= 0, "use an integer >= 0")
  require("image.size", config.image.size >= 16, "ResNet-12 needs at least 16")
  side = config.image.pretrain_size
  require("image.pretrain_size", side == 0 or side >= 16, "use 0 or >= 16")
  one_of("image.crop", config.image.crop, ("center", "whole"))
  require("model.width", config.model.width > 0, "must be above 0")
  one_of("model.precision", config.model.precision, PRECISIONS)
  one_of("nodes.kind", config.nodes.kind, NODES)
  spec = config.nodes
  for field, least in (("pyramid", 0), ("grid", 1)):
    holds = len(spec[field]) >= least and all(x >= 1 for x in spec[field])
    require(f"nodes.{field}", holds, "use whole numbers of at least 1")
  require("nodes.ratio", spec.ratio > 0, "must be above 0")
  require("nodes.patches", spec.patches >= 1, "must be at least 1")
  require("nodes.test_patches", spec.test_patches >= 0, "must be at least 0")
  low, high = spec.train_ratio
  require("nodes.train_ratio", 0 < low <= high, "use (low, high), both above 0")
  require("sfc.epochs", config.sfc.epochs >= 0, "must be at least 0")
  require("sfc.lr", config.sfc.lr > 0, "must be above 0")
  require("sfc.batch_size", config.sfc.batch_size >= 1, "must be at least 1")
  one_of("sfc.gradient", config.sfc.gradient, ("exact", "flow"))
  one_of(
    "metatrain.batch_norm", config.metatrain.batch_norm, ("batch", "fixed")
  )
  for name in config.evaluate.heads:
    one_of("evaluate.heads", name, HEADS)
  heads = config.evaluate.heads
  require(
    "evaluate.heads", not heads or "deepemd" in heads, "deepemd must be there"
  )
  for change in config.evaluate.more:
    if not _SHOTS.fullmatch(change):
      one_of("evaluate.more", change, (*NODES, "5-shot (or another number)"))
  require("evaluate.memory", config.evaluate.memory >= 0, "must be at least 0")
  one_of("emd.solver", config.emd.solver, SOLVERS)
  one_of("emd.gradient", config.emd.gradient, ("exact", "flow"))
  one_of("emd.form", config.emd.form, ("L2", "QP"))
  require("emd.l2_strength", config.emd.l2_strength > 0, "must be above 0")
  require("emd.epsilon", config.emd.epsilon > 0, "must be above 0")
  require("evaluate.epsilon", config.evaluate.epsilon > 0, "must be above 0")
  require("emd.temperature", config.emd.temperature > 0, "must be above 0")
  for name, least in (("way", 2), ("shot", 1), ("query", 1)):
    value = config.episode[name]
    require(f"episode.{name}", value >= least, f"must be at least {least}")
  for name in ("way", "shot", "query"):
    value = config.metatrain[name]
    least = 2 if name == "way" else 1
    rule = f"must be at least {least}, or 0 for config.episode.{name}"
    require(f"metatrain.{name}", value == 0 or value >= least, rule)
  for name in ("pretrain", "metatrain"):
    stage = config[name]
    one_of(f"{name}.optimizer", stage.optimizer, ("sgd", "adamw"))
    one_of(f"{name}.schedule", stage.schedule, ("step", "cosine"))
    require(f"{name}.lr", stage.lr > 0, "must be above 0")
    require(f"{name}.weight_decay", stage.weight_decay >= 0, "must be >= 0")
    counts = ["epochs", "batch_size", "validate_every", "validation_episodes"]
    for field in (*counts, "decay_every"):
      require(f"{name}.{field}", stage[field] >= 1, "must be at least 1")
    require(
      f"{name}.warmup_epochs",
      0 <= stage.warmup_epochs < max(stage.epochs, 1),
      "must be >= 0 and below epochs",
    )
  require("metatrain.steps", config.metatrain.steps >= 1, "must be at least 1")
  least = {"episodes": 2, "batch_size": 1, "encode_batch_size": 1}
  least |= {"variant_episodes": 2, "more_episodes": 2, "pictures": 0}
  for field, floor in least.items():
    value = config.evaluate[field]
    require(f"evaluate.{field}", value >= floor, f"must be at least {floor}")
  _check_retrieve(config, require, one_of)
  if problems:
    raise InputError("; ".join(dict.fromkeys(problems)))


def _check_retrieve(config, require, one_of) -> None:
  spec = config.retrieve
  one_of("retrieve.split", spec.split, ("val", "test"))
  for field in ("depths", "recalls"):
    holds = len(spec[field]) > 0 and all(x >= 1 for x in spec[field])
    require(f"retrieve.{field}", holds, "use whole numbers of at least 1")
  least = {"batch_size": 1, "search_batch_size": 1, "block": 1}
  for field, floor in {"queries": 0, "pictures": 0, **least}.items():
    require(f"retrieve.{field}", spec[field] >= floor, f"must be >= {floor}")
  if "retrieve" in config.stages and config.nodes.kind == "sampling":
    rule = "retrieve encodes an image once; use False"
    require("nodes.redraw", not config.nodes.redraw, rule)


def check_feasible(config) -> None:
  """Refuses data that are not there, and episodes that the classes cannot fill;
  reads no images, imports no JAX.

  Raises:
    MissingData: a data set has to be fetched first.
    InputError: there are too few classes or images.
  """
  from deepemd_jax.data import episodes

  needed = {"val"}  # every stage chooses or judges by it
  needed |= {"train"} if "metatrain" in config.stages else set()
  needed |= {"test"} if {"evaluate", "retrieve"} & set(config.stages) else set()
  wanted = [(config, "default", s) for s in SPLITS if s in needed]
  if "evaluate" in config.stages:
    wanted += [(config, v, "test") for v in config.evaluate.variants]
    more = [changed(config, change) for change in config.evaluate.more]
    wanted += [(other, "default", "test") for other in more]
  found = [(source(*which), which) for which in wanted]
  for data, (_, _, split) in found:
    data.counts(split)  # is there such a split?
  for data, _ in found:
    data.check()
  for data, (of, _, split) in found:
    if "retrieve" in config.stages and split != "train":
      _check_retrievable(data.counts(split), split)
    if set(config.stages) == {"retrieve"} or (
      split == "test" and "evaluate" not in config.stages
    ):
      continue  # no episode is drawn of it
    shape = of.episode.to_dict() if split == "test" else training_episode(of)
    # Of what is there now, which may be more than what is published.
    episodes.check_feasible(data.counts(split), split=split, **shape)


def _check_retrievable(counts: dict[str, int], split: str) -> None:
  """Refuses a gallery where there is nothing to find, or to mistake it for."""
  several = sum(count > 1 for count in counts.values())
  if len(counts) < 2 or not several:
    raise InputError(
      f"retrieval needs two classes and one with two images; split {split!r} "
      f"has {len(counts)} classes, {several} of them with two images or more"
    )


_SHOTS = re.compile(r"([1-9]\d*)-shot")


def changed(config, change: str):
  """A copy of the config with one change: "5-shot", say, or "grid"."""
  other = copy.deepcopy(config)
  if found := _SHOTS.fullmatch(change):
    other.episode.shot = int(found[1])
  else:
    other.nodes.kind = change
  return other
