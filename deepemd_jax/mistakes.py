"""What a command says at its end about the mistake of a person."""

import sys

from deepemd_jax.errors import MISTAKE, InputError, MissingData
from deepemd_jax.utils import extra
from deepemd_jax.utils.terminal import harmless


def tell(error: Exception) -> int | None:
  """Writes to stderr what was wrong: a line, or a few if data are missing.

  Returns:
    The exit code; None, and nothing is written, if the error is of our making.
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
  """Writes one line about a mistake to stderr, whatever the message holds."""
  _write(" ".join(message.split()))


def _write(text: str) -> None:
  sys.stderr.write(f"deepemd_jax: error: {harmless(text)}\n")
