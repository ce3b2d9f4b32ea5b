"""The exceptions that mean "the user can fix this"."""


class InputError(ValueError):
  """Bad input from a person: a file, a folder, a flag, a config field.

  Its message is one line that names what was wrong, the value, and the
  remedy. `main` prints that line and exits with code 2.
  """


class MissingData(InputError):
  """A data set that has to be fetched first.

  Attributes:
    lines: at most eight: what is missing, from where, how large, into which
      folder, and the command to run. `main` prints them all.
  """

  def __init__(self, lines: list[str]):
    super().__init__(lines[0])
    self.lines = lines
