"""Messages at the end of a command about a mistake of the user."""

import sys

from deepemd_jax.errors import MISTAKE, InputError, MissingData
from deepemd_jax.utils import extra
from deepemd_jax.utils.terminal import harmless


def tell(error: Exception) -> int | None:
  """Writes an error message to stderr: a line, or a few if data are missing.

  Returns:
    The exit code. If the error is not a mistake of the user, it is None, and
    nothing is written.
  """
  if isinstance(error, MissingData):
    _write("\n".join([str(error), *error.lines[1:]]))
  elif isinstance(error, InputError):
    complain(str(error))
  elif isinstance(error, ModuleNotFoundError) and (
    line := extra.missing(error)
  ):
    complain(line)
  else:
    return None
  return MISTAKE


def complain(message: str) -> None:
  """Writes a message to stderr as one line, whatever it contains."""
  _write(" ".join(message.split()))


def _write(text: str) -> None:
  sys.stderr.write(f"deepemd_jax: error: {harmless(text)}\n")
