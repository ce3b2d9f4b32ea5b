"""The one exception that means "the user can fix this"."""


class InputError(ValueError):
  """Bad input from a person: a file, a folder, a flag, a config field.

  Its message is one line that names what was wrong, the value, and the
  remedy. `main` prints that line and exits with code 2.
  """
