"""Records files of `torch.save` and their contents. Run once for each version:

    pip install torch==1.4.0 numpy    # Python 3.8
    python tests/golden/torch/record.py

It writes torch_1.4.0_zip.pth and torch_1.4.0_row.pth (the older format). It
adds entries to expected.json: {file: {name: [dtype, shape, bytes]}}. The bytes
are those of the tensor in order, in hexadecimal.
"""

import collections
import json
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent


def tensors():
  """Makes tensors of every kind that a state dict may have."""
  torch.manual_seed(0)
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
  model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3))
  found = collections.OrderedDict(model.state_dict())
  found["base"] = base
  found["rows of base"] = base[1:3]
  found["turned base"] = base.t()
  found["every second"] = base[:, ::2]
  found["expanded"] = base[:1].expand(3, 6)
  found["parameter"] = torch.nn.Parameter(base[0] * 3)
  found["channels last"] = base.reshape(1, 2, 3, 4).permute(0, 3, 1, 2)
  found["scalar"] = torch.tensor(2.5)
  found["empty"] = torch.zeros(0, 3)
  for name in ("half", "bfloat16", "double", "int64", "int32", "int16"):
    found[name] = (base * 10).to(getattr(torch, name))
  found["int8"], found["uint8"] = base.to(torch.int8), base.to(torch.uint8)
  found["bool"] = base > 1
  return found


def described(tensor):
  """Returns [dtype, shape, bytes in hexadecimal] of a tensor."""
  tensor = tensor.detach()
  if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16
    bits = np.ascontiguousarray(tensor.float().numpy()).view(np.uint32) >> 16
    return [
      "bfloat16",
      list(tensor.shape),
      bits.astype(np.uint16).tobytes().hex(),
    ]
  array = np.ascontiguousarray(tensor.numpy())
  return [str(array.dtype), list(tensor.shape), array.tobytes().hex()]


def main():
  path = HERE / "expected.json"
  expected = json.loads(path.read_text()) if path.exists() else {}
  version = torch.__version__.split("+")[0]
  found = tensors()
  for kind in ("zip", "row"):
    name = f"torch_{version}_{kind}"
    torch.save(
      found,
      str(HERE / (name + ".pth")),
      _use_new_zipfile_serialization=kind == "zip",
    )
    expected[name] = {key: described(value) for key, value in found.items()}
  path.write_text(json.dumps(expected, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
  main()
