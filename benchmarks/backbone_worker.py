"""Runs one network in a separate process, on request.

`backbone_speed` starts this program. It needs NumPy and the packages of its
library: JAX and this package ("ours"), PyTorch ("torch"), or ONNX Runtime and
PyTorch ("onnx"). Every line that it reads is one call, and every line that it
writes has the time and the memory of that call.
"""

import functools
import json
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np

# Width, blocks, heads, patch side, and image side of the position embeddings.
VITS = {
  "tiny": (16, 1, 2, 14, 28),
  "vit_s14": (384, 12, 6, 14, 518),
  "vit_b14": (768, 12, 12, 14, 518),
}
MEGABYTE = 1e6


def make(library: str, name: str, size: int, count: int):
  """Returns a function that calls a network with random weights.

  Args:
    library: "ours", "torch" or "onnx".
    name: the name of the network, "lite0" or one of `VITS`.
    size: side of the images in pixels.
    count: number of images per call.
  """
  rng = np.random.default_rng(0)
  images = rng.standard_normal((count, size, size, 3), np.float32)
  if library == "ours":
    return _ours(name, images)
  import torch

  pixels = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
  net = (_torch_lite() if name == "lite0" else _torch_vit(name)).eval()
  if library == "onnx":
    return _onnx(net, pixels)
  return torch.inference_mode()(functools.partial(net, pixels))


def _ours(name: str, images: np.ndarray):
  import jax

  from deepemd_jax.models import efficientnet_lite, vit

  if name == "lite0":
    backbone = efficientnet_lite.lite0()
  else:
    width, depth, heads, patch, side = VITS[name]
    backbone = vit.create(
      vit.Architecture(
        *(width, 4 * width, depth, heads, patch), grid=side // patch
      ),
      image_size=side,
      mean=(0.0, 0.0, 0.0),
      std=(1.0, 1.0, 1.0),
    )
  variables = jax.jit(backbone.init)(jax.random.key(0))
  on_device = jax.device_put(images)
  return lambda: jax.block_until_ready(backbone.encode(variables, on_device))


def _torch_vit(name: str):
  """Returns a DINOv2 of `transformers` that outputs its patch tokens."""
  import torch
  from transformers import Dinov2Config, Dinov2Model

  width, depth, heads, patch, side = VITS[name]
  model = Dinov2Model(
    Dinov2Config(
      hidden_size=width,
      num_hidden_layers=depth,
      num_attention_heads=heads,
      patch_size=patch,
      image_size=side,
    )
  )

  class PatchTokens(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.model = model

    def forward(self, pixels):
      return self.model(pixel_values=pixels).last_hidden_state[:, 1:]

  return PatchTokens()


def _torch_lite():
  """Returns an EfficientNet-Lite0 that outputs its last feature map."""
  import torch
  from efficientnet_lite_pytorch import EfficientNet

  model = EfficientNet.from_name("efficientnet-lite0")

  class LastMap(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.model = model

    def forward(self, pixels):
      return self.model.extract_features(pixels)

  return LastMap()


def _onnx(net, pixels):
  """Returns a function that calls the same network in ONNX Runtime."""
  import onnxruntime
  import torch

  with tempfile.TemporaryDirectory() as folder:
    path = str(pathlib.Path(folder) / "net.onnx")
    torch.onnx.export(net, (pixels,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(
      path, options, providers=["CPUExecutionProvider"]
    )
  (given,) = (x.name for x in session.get_inputs())
  return lambda: session.run(None, {given: pixels.numpy()})


def seconds_of(call) -> dict[str, float]:
  """Returns the wall-clock seconds, and the CPU seconds of all cores."""
  start = time.perf_counter(), time.process_time()
  call()
  return {
    "seconds": time.perf_counter() - start[0],
    "cpu_seconds": time.process_time() - start[1],
  }


def main() -> None:
  """Answers requests until stdin ends."""
  library, name, size, count, threads = sys.argv[1:]
  if int(threads):  # before a library counts the cores
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: int(threads)])
  call = make(library, name, int(size), int(count))
  call()
  for _ in sys.stdin:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB on Linux
    answer = seconds_of(call) | {"peak_mb": peak * 1024 / MEGABYTE}
    print("answer", json.dumps(answer), flush=True)
