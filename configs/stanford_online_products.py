"""Retrieval by regions on Stanford Online Products, as metric learning has it.

    python -m deepemd_jax data prepare stanford_online_products
    python -m deepemd_jax.main --config=configs/stanford_online_products.py

11,318 products train (every tenth of them is held out, to choose by), 11,316
others are gallery and queries at once: 60,502 images. A product has five
images on average, some have two: episodes are 20-way with one query a class.
Variants, and why no published number belongs beside this: see
`configs/cub_retrieval.py`.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """The paper's schedule with smaller episodes, then retrieval; see above."""
  config = defaults.get_config()
  config.data.name = "stanford_online_products"
  config.stages = ("pretrain", "metatrain", "retrieve")
  config.metatrain.way = 20
  config.metatrain.query = 1
  config.retrieve.recalls = (1, 10, 100, 1000)
  return variants.apply(config, arg, variants.TRAINING)
