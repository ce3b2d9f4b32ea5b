"""Few-shot classification of groceries on photographs, by a frozen encoder.

    git clone https://github.com/marcusklasson/GroceryStoreDataset
    python -m deepemd_jax data prepare grocery --from GroceryStoreDataset
    python -m deepemd_jax.main --config=configs/grocery.py

The 81 classes are fruits, vegetables and cartons, photographed in shops by hand
(Klasson et al., WACV 2019; MIT). They are split 30/10/41, as in
`deepemd_jax/data/published/splits/grocery.json`. EfficientNet-Lite0 with
ImageNet weights encodes 13 crops of each photograph. Nothing is trained.

Variants follow a colon, as in `configs/grocery.py:5shot`: 5shot, 10shot, 10way
and ablation.
"""

from deepemd_jax.config import defaults, variants


def get_config(arg: str = ""):
  """Returns the test of a frozen encoder; see the module's docstring."""
  config = defaults.get_config("photographs")
  config.data.name = "grocery"
  config.evaluate.episodes = 600
  # There is only one encoder, so validation chooses nothing.
  config.metatrain.validation_episodes = 10
  return variants.apply(config, arg, variants.FROZEN)
