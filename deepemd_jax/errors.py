"""The exceptions that end a run with one line instead of a traceback, and the
exit codes."""

LOST = 75  # lost another process (EX_TEMPFAIL of sysexits.h); start it again
STOPPED = 143  # stopped by SIGTERM or SIGINT, after saving; start it again
MISTAKE = 2  # the user must first correct a mistake, or make room


class InputError(ValueError):
  """Bad input from the user: a file, a folder, a flag, a config field.

  Its message is one line that names the problem, the value, and the remedy.
  `mistakes.tell` prints that line, and the command ends with code 2.
  """


class MissingData(InputError):
  """A data set that must be fetched first.

  Attributes:
    lines: at most eight lines: what is missing, its source, its size, its
      folder, and the command to run. `mistakes.tell` prints all of them.
  """

  def __init__(self, lines: list[str]):
    super().__init__(lines[0])
    self.lines = lines


class StopRequested(Exception):
  """A signal asked the run to stop, and its state is saved.

  The message says how to continue. `main` prints it and exits with code 143.
  """
