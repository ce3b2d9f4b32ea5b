"""Shapes in public signatures are checked at run time, here only."""

import os

# Before anything imports JAX.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxtyping  # noqa: E402

_HOOK = jaxtyping.install_import_hook(
  ["deepemd_jax.emd", "deepemd_jax.models.matching"], "beartype.beartype"
)
