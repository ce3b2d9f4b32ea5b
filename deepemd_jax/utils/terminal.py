"""(to be replaced at the merge)"""

import sys


def note(message: str) -> None:
  print(message, file=sys.stderr, flush=True)
