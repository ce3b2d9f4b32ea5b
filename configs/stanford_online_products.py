"""Retrieval by regions on Stanford Online Products, as in metric learning.

    python -m deepemd_jax data prepare stanford_online_products
    python -m deepemd_jax.main --config=configs/stanford_online_products.py

There are 11,318 products for training; every tenth of them is held out for
validation. The other 11,316 products are both gallery and queries, 60,502
images. A product has five images on average, and some products have two, so
episodes are 20-way with one query per class. `configs/cub_retrieval.py` lists
the variants and says why no published number is comparable.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the paper's schedule with smaller episodes, then retrieval."""
  config = defaults.get_config()
  config.data.name = "stanford_online_products"
  config.stages = ("pretrain", "metatrain", "retrieve")
  config.metatrain.way = 20
  config.metatrain.query = 1
  config.retrieve.recalls = (1, 10, 100, 1000)
  return variants.apply(config, arg, variants.TRAINING)
