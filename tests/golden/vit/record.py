"""Records the outputs of tiny random models of `transformers`.

    python -m venv peers && peers/bin/pip install torch transformers pillow
    peers/bin/python tests/golden/vit/record.py

It writes a folder for each kind of model, in Hugging Face's layout, with a file
recorded.npz. This file has the last patch tokens, [1, h, w, width], of the
image that tests/models/test_vit.py draws. There are two sizes of the image:
that of the table of positions ("own"), and another one ("other").
"""

import pathlib
import shutil

import numpy as np
import torch
from transformers import (
  BitImageProcessor,
  CLIPConfig,
  CLIPImageProcessor,
  CLIPModel,
  Dinov2Config,
  Dinov2Model,
  Dinov2WithRegistersConfig,
  Dinov2WithRegistersModel,
  DINOv3ViTConfig,
  DINOv3ViTModel,
  SiglipImageProcessor,
  SiglipVisionConfig,
  SiglipVisionModel,
)

HERE = pathlib.Path(__file__).parent
PATCH = 4
OWN, OTHER = (20, 20), (32, 12)  # 5 x 5 patches; 8 x 3
SMALL = {
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "image_size": OWN[0],
  "patch_size": PATCH,
}
WIDE = SMALL | {"intermediate_size": 24}


def models():
  """Yields folder, model, its image tower, and its image processor."""
  bit = {"size": {"shortest_edge": 24}, "crop_size": dict.fromkeys(_SIDES, 20)}
  bit |= {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
  }
  for name, kind, config in (
    ("dinov2", Dinov2Model, Dinov2Config(mlp_ratio=2, **SMALL)),
    (
      "dinov2_gated",
      Dinov2Model,
      Dinov2Config(mlp_ratio=2, use_swiglu_ffn=True, **SMALL),
    ),
    (
      "dinov2_with_registers",
      Dinov2WithRegistersModel,
      Dinov2WithRegistersConfig(mlp_ratio=2, **SMALL),
    ),
    (
      "dinov3_vit",
      DINOv3ViTModel,
      DINOv3ViTConfig(num_register_tokens=4, **WIDE),
    ),
    (
      "dinov3_vit_gated",
      DINOv3ViTModel,
      DINOv3ViTConfig(
        use_gated_mlp=True, hidden_act="silu", query_bias=False, **WIDE
      ),
    ),
  ):
    model = kind(config)
    yield name, model, model, BitImageProcessor(**bit)
  text = {"vocab_size": 8, "max_position_embeddings": 4, "projection_dim": 8}
  text |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
  text |= {k: WIDE[k] for k in WIDE if k not in ("image_size", "patch_size")}
  image = WIDE | {"projection_dim": 8}
  clip = CLIPModel(
    CLIPConfig(vision_config=image, text_config=text, projection_dim=8)
  )
  clip_images = CLIPImageProcessor(
    size={"shortest_edge": 20}, crop_size=dict.fromkeys(_SIDES, 20)
  )
  yield "clip", clip, clip.vision_model, clip_images
  siglip = SiglipVisionModel(SiglipVisionConfig(**WIDE))
  siglip_images = SiglipImageProcessor(size=dict.fromkeys(_SIDES, 20))
  yield "siglip_vision_model", siglip, siglip, siglip_images


_SIDES = ("height", "width")


def randomize(model):
  """Sets random numbers, also for parameters that begin as 0 or 1."""
  for name, parameter in model.named_parameters():
    around = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
    spread = 0.3
    if parameter.ndim > 1 and "token" not in name and "position" not in name:
      spread = 1.5 / parameter[0].numel() ** 0.5
    parameter.normal_(around, spread)


def patch_tokens(tower, image):
  """Returns tokens [1, h, w, width] without the class token and registers."""
  pixels = torch.tensor(image).permute(0, 3, 1, 2)
  can_refuse = type(tower).__name__.startswith(("CLIP", "Siglip"))
  options = {"interpolate_pos_encoding": True} if can_refuse else {}
  found = tower(pixel_values=pixels, **options).last_hidden_state
  rows, columns = (side // PATCH for side in image.shape[1:3])
  found = found[:, found.shape[1] - rows * columns :]
  return found.reshape(1, rows, columns, -1).numpy()


@torch.no_grad()
def main():
  for number, (name, model, tower, images) in enumerate(models()):
    torch.manual_seed(number)
    randomize(model.eval())
    rng = np.random.default_rng(number)
    recorded = {
      key: patch_tokens(tower, rng.standard_normal((1, *side, 3), np.float32))
      for key, side in (("own", OWN), ("other", OTHER))
    }
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez(folder / "recorded.npz", **recorded)


if __name__ == "__main__":
  main()
