"""Every field of a run, once, with its unit, legal values and source.

The defaults are the paper's: ResNet-12, 84x84 images, 5-way 1-shot. A config
file calls `get_config` of this one and changes a few lines; a command line
changes single fields: `--config.metatrain.lr=0.001`. Fields are locked: a name
that is not here is an error.

"Official" is github.com/icoz69/DeepEMD.
"""

from ml_collections import ConfigDict

from deepemd_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
  """The paper's settings on the embedded data set; `arg` as `variants`."""
  config = ConfigDict()
  # Part of the default workdir's name; set by variants that change training.
  config.variant = ""
  # Every random draw of the run follows from it: any integer >= 0.
  config.seed = 0
  # What to run, in this order, from: pretrain, metatrain, evaluate, retrieve. A
  # finished stage is not run again; evaluate and retrieve always are.
  config.stages = ("pretrain", "metatrain", "evaluate")

  data = config.data = ConfigDict()
  # glyph_clutter (made on the spot), folder (your images) or a published one:
  # `python -m deepemd_jax data list` names them. Images are decoded
  # once, to squares whose side, in pixels, is part of the name: cub is cub:160
  # (random crops within 2 gray levels of crops of the originals); cub:84 are
  # the small ones of many papers, another protocol; cub:original decodes
  # whenever an image is read. Copies that would enlarge images are refused.
  data.name = "glyph_clutter"
  # The same for the split test alone; "" is data.name. To train on one data set
  # and test on another.
  data.test_name = ""
  # Where prepared data sets and decoded copies are kept; "" is $TFDS_DATA_DIR,
  # or ~/tensorflow_datasets.
  data.directory = ""
  # Processes that make training batches; 0 is two threads, which keep up where
  # images are copies. For originals, which are decoded again and again: one for
  # every two CPU cores, say. Results do not depend on it.
  data.workers = 0
  # folder: the root, holding one directory per class, or train/, val/, test/.
  data.folder = ""
  # folder: a CSV with columns filename,label,split or label,split; "" for none.
  data.csv = ""
  # folder without a CSV: share of classes for training, validation and test.
  data.fractions = (0.64, 0.16, 0.2)

  image = config.image = ConfigDict()
  # Side in pixels of what the network sees; 0 is what the backbone is made for.
  image.size = 84
  # The same in pre-training; 0 is image.size. Random crops show things larger
  # than whole images do, so a smaller side there, which is cheaper, meets them
  # at the size they are tested at (Touvron et al., "Fixing the train-test
  # resolution discrepancy", NeurIPS 2019).
  image.pretrain_size = 0
  # Evaluation view: "center" resizes to size * 92 / 84 and crops the center
  # (official), "whole" keeps everything.
  image.crop = "center"
  # Random crops, of training and of sampling's nodes: share of the area, within
  # 0 to 1, and width / height (official: torchvision's defaults).
  image.crop_scale = (0.08, 1.0)
  image.crop_ratio = (0.75, 4 / 3)
  # Mirror half of the random crops. Not for letters.
  image.flip = True
  # Gray levels (0..255) subtracted and divided by, red, green, blue (official);
  # () is what the backbone was made for.
  image.mean = (125.3, 123.0, 113.9)
  image.std = (63.0, 62.1, 66.7)

  model = config.model = ConfigDict()
  # From images to feature maps; see `deepemd_jax/models/backbone.py`.
  model.backbone = "resnet12"
  # Channels of the linear map behind it that `python -m deepemd_jax adapt` has
  # learned; 0 is none.
  model.projection = 0
  # vit: its folder, in Hugging Face's layout (config.json,
  # preprocessor_config.json, model.safetensors); "" for the others.
  model.weights = ""
  # Channels of ResNet-12 as a multiple of 64, 160, 320, 640.
  model.width = 1.0
  # How many blocks of ResNet-12, the first ones, halve the map (paper: all 4).
  # Fewer leave small images more cells.
  model.pools = 4
  # float32, or bfloat16: convolutions and activations in bfloat16; parameters,
  # optimizer, batch norm's statistics, weights, costs and EMD stay float32
  # (official: float32). For accelerators; a CPU is slower with it.
  model.precision = "float32"

  # What is matched: the local descriptors of an image.
  nodes = config.nodes = ConfigDict()
  # fcn (cells of the feature map), grid (crops in rows and columns) or sampling
  # (random crops). Of grid and sampling every crop is encoded and is one node.
  # Pre-training is the same for all three.
  nodes.kind = "fcn"
  # fcn: cells along a side that the map is averaged to; 0, or more than the map
  # has, is the map as it is. Of a transformer that is every token.
  nodes.cells = 0
  # fcn: also averages over grids with so many cells along a side; () for none
  # (paper's best: (2, 1)).
  nodes.pyramid = ()
  # grid: cells along a side, one number per level (paper's best: (5, 3, 2)).
  nodes.grid = (2, 3)
  # grid: side of a crop over side of its cell (official: 2); in training it is
  # drawn from train_ratio, for each image and level.
  nodes.ratio = 2.0
  nodes.train_ratio = (1.0, 3.0)
  # sampling: crops of an image in training, and at test time; 0 is as many.
  # They are drawn as image.crop_scale, crop_ratio and flip say.
  nodes.patches = 9
  nodes.test_patches = 0
  # sampling: a test image's crops are drawn once, and it is encoded once; True
  # draws others for every episode (official), and each head encodes them anew.
  nodes.redraw = False

  layer = config.emd = ConfigDict()
  # auto (network_simplex on CPU, else interior_point), interior_point,
  # network_simplex; for comparison regularized_qp (the paper's) and sinkhorn.
  layer.solver = "auto"
  # Of regularized_qp: L2 or QP, and the weight of L2's |flow|^2 / 2.
  layer.form = "L2"
  layer.l2_strength = 1e-6
  # Of sinkhorn: the entropy's weight, in units of cost (which is 0 to 2).
  layer.epsilon = 0.01
  # exact (duality, both sides and the weights), or flow (the official OpenCV
  # path: flow constant, nothing to the weights).
  layer.gradient = "exact"
  # The logit's scale (paper: 12.5).
  layer.temperature = 12.5

  # Test episodes; for those of training, see metatrain.
  episode = config.episode = ConfigDict()
  episode.way = 5
  episode.shot = 1
  # Query images per class.
  episode.query = 15

  # The structured FC layer, which makes class nodes of more than one shot by
  # training them on the support images (official values).
  sfc = config.sfc = ConfigDict()
  sfc.epochs = 100
  sfc.lr = 100.0
  # Support images a step.
  sfc.batch_size = 4
  # As emd.gradient.
  sfc.gradient = "flow"

  pretrain = config.pretrain = ConfigDict()
  pretrain.epochs = 120
  # Images a step.
  pretrain.batch_size = 128
  # sgd (official: Nesterov momentum 0.9, L2 decay), or adamw, which leaves the
  # starting plateau of a short schedule in a fraction of the steps.
  pretrain.optimizer = "sgd"
  pretrain.lr = 0.1
  # "step": lr * decay_rate ** (epoch // decay_every); "cosine": to 0 at the
  # end.
  pretrain.schedule = "step"
  pretrain.decay_every = 30
  pretrain.decay_rate = 0.2
  # Linear warm-up from 0, in epochs.
  pretrain.warmup_epochs = 0
  pretrain.weight_decay = 5e-4
  # The share of a label that goes to all classes alike (official: none;
  # Szegedy et al., CVPR 2016).
  pretrain.label_smoothing = 0.0
  # Validate (and save) every so many epochs, on this many episodes.
  pretrain.validate_every = 1
  pretrain.validation_episodes = 100

  metatrain = config.metatrain = ConfigDict()
  metatrain.epochs = 100
  # Steps an epoch, and episodes a step (official: 50 and 1).
  metatrain.steps = 50
  metatrain.batch_size = 1
  # Training and validation episodes: classes, support and query images a class;
  # 0 is config.episode's. (Official: one model, trained with 1 shot, is tested
  # with any number of shots.)
  metatrain.way = 0
  metatrain.shot = 1
  metatrain.query = 0
  # Batch norm: "batch" takes the statistics of each episode (official), "fixed"
  # the pre-trained ones.
  metatrain.batch_norm = "batch"
  metatrain.optimizer = "sgd"
  metatrain.lr = 5e-4
  metatrain.schedule = "step"
  metatrain.decay_every = 10
  metatrain.decay_rate = 0.5
  metatrain.warmup_epochs = 0
  metatrain.weight_decay = 5e-4
  metatrain.validate_every = 1
  metatrain.validation_episodes = 1000

  evaluate = config.evaluate = ConfigDict()
  # Test episodes (paper: 5000 for 1-shot, 600 for more shots).
  evaluate.episodes = 5000
  # Episodes and images in one device call; results do not depend on them.
  evaluate.batch_size = 10
  evaluate.encode_batch_size = 128
  # What to compare, on the same episodes: deepemd, deepemd_equal_weights,
  # deepemd_l2, deepemd_sinkhorn, deepemd_qp, deepemd_pooled (its logit plus
  # half of the prototype's), deepemd_mean and deepemd_nearest
  # (more shots without the structured FC layer), prototype,
  # logistic_regression, chamfer. () is the usual three.
  evaluate.heads = ()
  # Of the head deepemd_sinkhorn, as emd.epsilon. Its time grows as 1 / epsilon,
  # and faster for the worst problem of a batch.
  evaluate.epsilon = 0.05
  # The same test set again with one change each: "5-shot", "grid", ...
  evaluate.more = ()
  evaluate.more_episodes = 100
  # Nodes of the test set that are larger than this many GiB are kept in a file.
  evaluate.memory = 8.0
  # Also test on these variants of the data set (glyph_clutter: d0_plain ..
  # d3_busy), with this many episodes each.
  evaluate.variants = ()
  evaluate.variant_episodes = 200
  # Query images shown in figures/matched_regions.png.
  evaluate.pictures = 4

  # Retrieval: each image asks for the others of its class, leave-one-out, among
  # all test images. The cosine of pooled descriptors ranks all, EMD the first.
  retrieve = config.retrieve = ConfigDict()
  # test; or val, while settings are being chosen.
  retrieve.split = "test"
  # So many images ask, drawn by the seed; 0 is all of them.
  retrieve.queries = 0
  # How many images EMD puts in order: the largest in the table, all of them in
  # the curve of quality and time. More than there are is all.
  retrieve.depths = (5, 10, 20, 50, 100)
  # The K of Recall@K (Stanford Online Products: 1, 10, 100, 1000).
  retrieve.recalls = (1, 2, 4, 8)
  # Queries in one call of the EMD; queries, and images of the gallery, in one
  # of the global search. Results do not depend on them.
  retrieve.batch_size = 16
  retrieve.search_batch_size = 256
  retrieve.block = 16384
  # Queries shown in figures/retrieved.png.
  retrieve.pictures = 4
  return variants.apply(config, arg)
