"""All fields of a run, with their units, legal values and sources.

The defaults are the paper's: ResNet-12, 84x84 images, 5-way 1-shot. A config
file calls `get_config` of this file and changes a few fields. A command line
changes single fields: `--config.metatrain.lr=0.001`. Fields are locked: a name
that is not here is an error.

"Official" is github.com/icoz69/DeepEMD.
"""

from ml_collections import ConfigDict

from deepemd_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
  """Returns the paper's settings for the embedded data set, with variants.

  Args:
    arg: names of variants, separated by commas; see `variants.apply`.
  """
  config = ConfigDict()
  # Part of the default workdir's name. Variants that change the training set
  # it.
  config.variant = ""
  # The seed of all random draws of the run: any integer >= 0.
  config.seed = 0
  # The stages to run, in this order: pretrain, metatrain, evaluate, retrieve. A
  # finished training stage is not run again; evaluate and retrieve always are.
  config.stages = ("pretrain", "metatrain", "evaluate")

  data = config.data = ConfigDict()
  # glyph_clutter (generated images), folder (your images) or a published data
  # set, which `python -m deepemd_jax data list` names. Images are decoded once,
  # to squares whose side in pixels is part of the name. cub is cub:160 (random
  # crops are within 2 gray levels of crops of the originals). cub:84 has the
  # small images of many papers, which is another protocol. cub:original decodes
  # an image whenever it is read. Copies that would enlarge images are refused.
  data.name = "glyph_clutter"
  # The data set of the split test, to train on one data set and test on
  # another; "" is data.name.
  data.test_name = ""
  # The folder of prepared data sets and decoded copies; "" is $TFDS_DATA_DIR,
  # or ~/tensorflow_datasets.
  data.directory = ""
  # Processes that make training batches; 0 is two threads, which are fast
  # enough for decoded copies. Originals are decoded each time; use, for
  # example, one process per two CPU cores. Results do not depend on it.
  data.workers = 0
  # folder: the root, with one directory per class, or train/, val/, test/.
  data.folder = ""
  # folder: a CSV with columns filename,label,split or label,split; "" for none.
  data.csv = ""
  # folder without a CSV: share of classes for training, validation and test.
  data.fractions = (0.64, 0.16, 0.2)

  image = config.image = ConfigDict()
  # Side in pixels of the images that the network sees; 0 is the backbone's own.
  image.size = 84
  # This side in pre-training; 0 is image.size. Objects are larger in random
  # crops than in whole images. With a smaller side, which is also faster, they
  # have about the size that they have in tests (Touvron et al., "Fixing the
  # train-test resolution discrepancy", NeurIPS 2019).
  image.pretrain_size = 0
  # Evaluation view: "center" resizes to size * 92 / 84 and crops the center
  # (official), "whole" keeps everything.
  image.crop = "center"
  # Random crops of training and of sampling's nodes: share of the area, within
  # 0 to 1, and width / height (official: torchvision's defaults).
  image.crop_scale = (0.08, 1.0)
  image.crop_ratio = (0.75, 4 / 3)
  # Whether to mirror half of the random crops. It is not suitable for letters.
  image.flip = True
  # Gray levels (0..255) of red, green and blue to subtract, and to divide by
  # (official); () is the backbone's own.
  image.mean = (125.3, 123.0, 113.9)
  image.std = (63.0, 62.1, 66.7)

  model = config.model = ConfigDict()
  # The network from images to maps; see `deepemd_jax/models/backbone.py`.
  model.backbone = "resnet12"
  # Channels of the linear map after the backbone, which
  # `python -m deepemd_jax adapt` learns; 0 is no map.
  model.projection = 0
  # vit: its folder, in Hugging Face's layout (config.json,
  # preprocessor_config.json, model.safetensors); "" for other backbones.
  model.weights = ""
  # Channels of ResNet-12 as a multiple of 64, 160, 320, 640.
  model.width = 1.0
  # The number of blocks of ResNet-12, counted from the first, that halve the
  # map (paper: all 4). With fewer, maps of small images have more cells.
  model.pools = 4
  # float32, or bfloat16 for convolutions and activations. Parameters,
  # optimizer, batch norm's statistics, weights, costs and EMD stay float32
  # (official: float32). bfloat16 is for accelerators; a CPU is slower with it.
  model.precision = "float32"

  # The nodes: the local descriptors of an image, which are matched.
  nodes = config.nodes = ConfigDict()
  # fcn (cells of the feature map), grid (crops in rows and columns) or sampling
  # (random crops). In grid and sampling, each crop is encoded to one node.
  # Pre-training is the same for all three.
  nodes.kind = "fcn"
  # fcn: cells along a side after the map is averaged; 0, or more than the map
  # has, does not change it. The map of a transformer has a cell per patch.
  nodes.cells = 0
  # fcn: cells along a side of grids whose averages are nodes, too; () for none
  # (paper's best: (2, 1)).
  nodes.pyramid = ()
  # grid: cells along a side, one number per level (paper's best: (5, 3, 2)).
  nodes.grid = (2, 3)
  # grid: side of a crop over side of its cell (official: 2). In training it is
  # drawn from train_ratio, for each image and level.
  nodes.ratio = 2.0
  nodes.train_ratio = (1.0, 3.0)
  # sampling: crops per image in training, and in tests, where 0 is the number
  # in training. They are drawn with image.crop_scale, crop_ratio and flip.
  nodes.patches = 9
  nodes.test_patches = 0
  # sampling: False draws the crops of a test image once and encodes it once.
  # True draws new crops for each episode (official), which each head encodes.
  nodes.redraw = False

  layer = config.emd = ConfigDict()
  # auto (network_simplex on CPU, else interior_point), interior_point,
  # network_simplex; for comparison regularized_qp (the paper's) and sinkhorn.
  layer.solver = "auto"
  # regularized_qp: L2 or QP, and the weight of |flow|^2 / 2 in L2.
  layer.form = "L2"
  layer.l2_strength = 1e-6
  # sinkhorn: the weight of the entropy, in units of cost (which is 0 to 2).
  layer.epsilon = 0.01
  # exact (by duality, through the costs and the weights), or flow (as in the
  # official OpenCV path: the flow is constant, and weights get no gradient).
  layer.gradient = "exact"
  # The factor of the logits (paper: 12.5).
  layer.temperature = 12.5

  # Test episodes; for training episodes, see metatrain.
  episode = config.episode = ConfigDict()
  episode.way = 5
  episode.shot = 1
  # Query images per class.
  episode.query = 15

  # The structured FC layer, which makes class nodes from more than one shot by
  # training them on the support images (official values).
  sfc = config.sfc = ConfigDict()
  sfc.epochs = 100
  sfc.lr = 100.0
  # Support images per step.
  sfc.batch_size = 4
  # See emd.gradient.
  sfc.gradient = "flow"

  pretrain = config.pretrain = ConfigDict()
  pretrain.epochs = 120
  # Images per step.
  pretrain.batch_size = 128
  # sgd (official: Nesterov momentum 0.9, L2 decay), or adamw, which leaves the
  # starting plateau of a short schedule in a fraction of the steps.
  pretrain.optimizer = "sgd"
  pretrain.lr = 0.1
  # "step" is lr * decay_rate ** (epoch // decay_every); "cosine" falls to 0 at
  # the end.
  pretrain.schedule = "step"
  pretrain.decay_every = 30
  pretrain.decay_rate = 0.2
  # Epochs of linear warm-up from 0.
  pretrain.warmup_epochs = 0
  pretrain.weight_decay = 5e-4
  # The share of a label that is spread evenly over all classes (official: none;
  # Szegedy et al., CVPR 2016).
  pretrain.label_smoothing = 0.0
  # Epochs between two validations, which also save, and episodes of each.
  pretrain.validate_every = 1
  pretrain.validation_episodes = 100

  metatrain = config.metatrain = ConfigDict()
  metatrain.epochs = 100
  # Steps per epoch, and episodes per step (official: 50 and 1).
  metatrain.steps = 50
  metatrain.batch_size = 1
  # Training and validation episodes: classes, and support and query images per
  # class; 0 is the number in config.episode. (Official: one model, trained with
  # 1 shot, is tested with any number of shots.)
  metatrain.way = 0
  metatrain.shot = 1
  metatrain.query = 0
  # Batch norm: "batch" uses the statistics of each episode (official), "fixed"
  # uses the pre-trained statistics.
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
  # The heads to compare, on the same episodes: deepemd, deepemd_equal_weights,
  # deepemd_l2, deepemd_sinkhorn, deepemd_qp, deepemd_pooled (its logit plus
  # half of the prototype's), deepemd_mean and deepemd_nearest
  # (more shots without the structured FC layer), prototype,
  # logistic_regression, chamfer. () is the usual three.
  evaluate.heads = ()
  # The epsilon of the head deepemd_sinkhorn; see emd.epsilon. The head's time
  # grows as 1 / epsilon, and faster for the worst problem of a batch.
  evaluate.epsilon = 0.05
  # Changes, such as "5-shot" or "grid". The test is repeated with each change,
  # on this many episodes.
  evaluate.more = ()
  evaluate.more_episodes = 100
  # Nodes of the test set that are larger than this many GiB are kept in a file.
  evaluate.memory = 8.0
  # Variants of the data set to test on, too (glyph_clutter: d0_plain ..
  # d3_busy), with this many episodes each.
  evaluate.variants = ()
  evaluate.variant_episodes = 200
  # Query images shown in figures/matched_regions.png.
  evaluate.pictures = 4

  # Retrieval: each query searches for the other images of its class among all
  # test images (leave-one-out). The cosine of pooled descriptors ranks all
  # images, and the EMD ranks the first ones again.
  retrieve = config.retrieve = ConfigDict()
  # test, or val while settings are being chosen.
  retrieve.split = "test"
  # The number of query images, drawn by the seed; 0 is all images.
  retrieve.queries = 0
  # The numbers of images that the EMD ranks again. The table shows the largest,
  # and the curve of quality and time shows all. A number above the number of
  # images stands for all images.
  retrieve.depths = (5, 10, 20, 50, 100)
  # The K of Recall@K (Stanford Online Products: 1, 10, 100, 1000).
  retrieve.recalls = (1, 2, 4, 8)
  # Queries in one call of the EMD, and queries and images of the gallery in one
  # call of the global search. Results do not depend on them.
  retrieve.batch_size = 16
  retrieve.search_batch_size = 256
  retrieve.block = 16384
  # Queries shown in figures/retrieved.png.
  retrieve.pictures = 4
  return variants.apply(config, arg)
