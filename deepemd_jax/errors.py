"""The exceptions that end a run with one line instead of a traceback, and the
exit codes."""

LOST = 75  # another process was; EX_TEMPFAIL of sysexits.h: start it again
STOPPED = 143  # after SIGTERM or SIGINT, and saving: start it again
MISTAKE = 2  # a person has to do something first: mend a flag, make room


class InputError(ValueError):
  """Bad input from a person: a file, a folder, a flag, a config field.

  Its message is one line that names what was wrong, the value, and the
  remedy. `mistakes.tell` prints that line, and
  the command ends with code 2.
  """


class MissingData(InputError):
  """A data set that has to be fetched first.

  Attributes:
    lines: at most eight: what is missing, from where, how large, into which
      folder, and the command to run. `mistakes.tell` prints them all.
  """

  def __init__(self, lines: list[str]):
    super().__init__(lines[0])
    self.lines = lines


class StopRequested(Exception):
  """A signal asked the run to stop; what it had is saved. Its message says how
  to go on. `main` prints it and exits with code 143."""
