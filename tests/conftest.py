"""Shapes in public signatures are checked at run time, here only. Programs are
compiled fast rather than well: most of the tests' time is compilation."""

import os
import signal

# A shell that starts the tests in the background has them ignore Ctrl-C, and so
# their children, some of which are to be interrupted.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports JAX.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# `make soak` sets it to nothing, which is how users run.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import jaxtyping  # noqa: E402

_HOOK = jaxtyping.install_import_hook(
  ["deepemd_jax.emd", "deepemd_jax.models.matching"], "beartype.beartype"
)
