"""The command `classify`, which uses a few examples of each class."""

import argparse
import codecs
import csv
import io
import os
import pathlib
import re
from collections.abc import Iterable

from deepemd_jax.errors import InputError
from deepemd_jax.inference import options as shared
from deepemd_jax.utils import files, terminal

HELP = "classify images by a few examples of each class"
DESCRIPTION = """
Classifies images by a few examples of each class:

  python -m deepemd_jax classify --support DIR --query DIR --out CSV

The CSV has a row for each image, with the columns file, prediction, probability
and, for each class, "p CLASS". If the true classes are known, there is a column
"label". If --skip-bad has left out images, there is a column "skipped" with the
reason. An image that shows none of the classes still gets one of them.

The values are separated by commas. The encoding is UTF-8, with the byte order
mark that Excel looks for (in Python: encoding="utf-8-sig").

A spreadsheet would run a name such as =1+1 as a formula. Therefore, the CSV has
an apostrophe before =, +, -, @, a tab, a line break or an apostrophe at the
beginning of a name, or after a semicolon, a tab or a line break within it. To
restore the name, remove the first apostrophe at each of these places.
"""
# The beginnings of formulas. Programs may also split cells at semicolons, tabs
# and line breaks, and some skip spaces.
_RISKY = re.compile(
  r"(?:\A|(?<=[;\t\r\n]))"
  r"(?=[\t\r\n']|[\s\x00-\x1f\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20])"
)
CLEANS_UP = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  parser.add_argument(
    "--support",
    metavar="DIR",
    required=True,
    help="the examples: one directory per class",
  )
  parser.add_argument(
    "--query",
    metavar="DIR",
    required=True,
    help="what to classify: an image, a folder of images, or, if the true "
    "classes are known, one directory per class, named as in --support",
  )
  parser.add_argument(
    "--out",
    metavar="CSV",
    required=True,
    help="file for the predictions, which replaces an existing one; names that "
    "a spreadsheet would run get an apostrophe, see above",
  )
  parser.add_argument(
    "--report",
    metavar="HTML",
    help="a page with accuracy, calibration and matched regions, in one file",
  )
  parser.add_argument(
    "--pictures",
    metavar="N",
    type=int,
    default=50,
    help="number of images whose matched regions are in the report, those with "
    "the worst predictions first (default %(default)s)",
  )
  parser.add_argument(
    "--center",
    metavar="DIR",
    help="photographs of the place where the images come from, without labels: "
    "what they have in common is removed, so that the classes differ more; or "
    "'support' for the examples, or 'none' (default: support, if the encoder "
    "is a published one and there are at least five classes; otherwise none)",
  )
  shared.add_encoding(parser, "query")


def run(options: argparse.Namespace) -> tuple[dict[str, bytes], str]:
  """Runs the command; returns {path: content to write} and a summary.

  Raises:
    InputError: an option, an image or the checkpoint is unsuitable.
  """
  if options.pictures < 0:
    raise InputError(f"--pictures is {options.pictures}; use 0 or more")

  from deepemd_jax.data import folder

  support = folder.classes(options.support)
  if len(support) < 2:
    raise InputError(
      f"{options.support!r} has one class, {list(support)[0]!r}, which every "
      "image would get; give at least two"
    )
  paths = folder.below(options.query)
  labels, remark = truth(options.query, paths, support)
  examples = [path for images in support.values() for path in images]
  _check_outputs(options, [*examples, *paths])

  from deepemd_jax.inference.classifier import FewShotClassifier
  from deepemd_jax.utils.progress import Progress

  classifier = FewShotClassifier(
    options.checkpoint,
    options.variant,
    options.solver,
    center=_center(options),
    cache=options.cache,
  )
  classifier.fit(
    examples, [name for name, images in support.items() for _ in images]
  )
  with Progress() as progress:
    results, contents = _classified(
      classifier, paths, labels, options.skip_bad, progress
    )
    outputs = {options.out: table(results)}
    if options.report:
      facts = _facts(classifier, support, contents)
      outputs[options.report] = _report(
        results, facts, classifier, paths, options.pictures, progress
      )
  if remark:
    terminal.note(remark)
  for i in sorted(results.bad):
    terminal.note(f"left out {str(paths[i])!r}: {results.bad[i]}")
  said = f"{results.summary()}\nwrote {' and '.join(outputs)}"
  return outputs, said + _disarmed(results, options.out)


def _center(options):
  """Returns the argument `center` of the classifier.

  With --skip-bad, the center is computed here, because the classifier would
  refuse a folder with bad images.
  """
  if not options.skip_bad or options.center in (None, "support", "none"):
    return options.center
  from deepemd_jax.data import folder
  from deepemd_jax.inference import search

  paths = folder.below(options.center)
  make_encoder, _ = search.encoder_and_solver(options)
  return search.center_of(make_encoder(), paths, skip_bad=True)


def _classified(classifier, paths, labels, skip_bad: bool, progress):
  """Returns the results, and the SHA-256 of each readable image."""
  import numpy as np

  from deepemd_jax.inference import image_encoder, report
  from deepemd_jax.inference.class_nodes import softmax

  logits = np.zeros((len(paths), len(classifier.classes_)))
  bad: dict[int, str] = {}
  contents: set[str] = set()
  scored = classifier.scored(
    paths, bad, lambda done: progress("images classified", done, len(paths))
  )
  for numbers, scores, digests in scored:
    logits[numbers] = scores
    contents |= set(digests)
  if not skip_bad or len(bad) == len(paths):
    image_encoder.refuse(paths, bad, ", or leave them out with --skip-bad")
  results = report.Results(
    classes=tuple(classifier.classes_.tolist()),
    files=tuple(map(str, paths)),
    probabilities=softmax(logits),
    truth=labels and np.searchsorted(classifier.classes_, labels),
    bad=bad,
  )
  return results, contents


def _report(results, facts, classifier, paths, pictures: int, progress):
  from deepemd_jax.inference import report

  return report.page(
    results,
    facts=facts,
    explain=lambda i, label: classifier.explain(paths[i], label),
    pictures=pictures,
    progress=lambda done, total: progress("pictures drawn", done, total),
  )


def truth(
  query: str, paths: list[pathlib.Path], classes
) -> tuple[list[str] | None, str]:
  """Returns the true classes if the query folder has directories of classes.

  Returns:
    The class of each path, or None unless every path is in a directory with the
    name of a class, in any spelling; and a remark if only some paths are, or if
    the directories of classes are one level deeper.
  """
  from deepemd_jax.data.names import Names

  if os.path.isfile(query):
    return None, ""
  parts = [path.relative_to(query).parts[:-1] for path in paths]
  known = Names(classes)
  class_of = {p[0]: known.find(p[0]) for p in parts if p}
  found = [class_of[p[0]] if p else None for p in parts]
  if None not in found:
    # pyrefly: ignore[bad-return]: `in` has excluded None
    return found, ""
  if not any(found):
    within = [p[0] for p in parts if len(p) > 1 and known.find(p[1])]
    if not within:
      return None, ""
    return None, (
      f"directories in {os.path.join(query, within[0])!r} have the names of "
      "classes: give that folder as --query to check the predictions"
    )
  others = sorted({p[0] if p else "" for p in parts} - class_of.keys())
  others += sorted(name for name, of in class_of.items() if of is None)
  where = f"in {others[0]!r}" if others[0] else "in no directory"
  return None, (
    f"some query images are in directories with the names of classes, others "
    f"{where}: the predictions are not checked"
  )


def _check_outputs(options: argparse.Namespace, inputs: Iterable) -> None:
  outputs = [path for path in (options.out, options.report) if path]
  # `Path.resolve` would raise an error at a link to itself.
  inputs = {pathlib.Path(os.path.realpath(path)) for path in inputs}
  for path in outputs:
    _check_output(path, inputs)
  if len({os.path.realpath(path) for path in outputs}) < len(outputs):
    raise InputError("--out and --report are the same file; give two names")


def _check_output(path: str, inputs: set[pathlib.Path]) -> None:
  """Checks before any work that a result can be written to a path.

  Args:
    path: path of the result; an existing file will be replaced.
    inputs: resolved paths that must not be replaced.

  Raises:
    InputError: the folder is missing or not writable, the path is not a file,
      or it is one of the inputs.
  """
  target = pathlib.Path(path).resolve()
  if target.exists() and not target.is_file():
    raise InputError(f"cannot write {path!r}: it exists and is not a file")
  if not target.parent.is_dir():
    raise InputError(f"cannot write {path!r}: there is no such folder")
  if target.exists() and not os.access(target, os.W_OK):
    raise InputError(f"cannot write {path!r}: it is write-protected")
  try:
    files.probe_beside(target)
  except OSError as error:
    raise InputError(f"cannot write {path!r}: {error.strerror}") from error
  if target in inputs:
    raise InputError(f"{path!r} is one of the images; give another name")


def table(results) -> bytes:
  """Returns the predictions as a CSV in UTF-8 with a byte order mark.

  The columns are file, prediction, probability and one "p <class>" per class.
  "label" follows if the truth is known. "skipped" follows if images were left
  out, with the reason. Names are written as `cell` returns them.
  """
  header = ["file", "prediction", "probability"]
  header += [cell(f"p {name}") for name in results.classes]
  header += ["label"] * (results.truth is not None)
  header += ["skipped"] * bool(results.bad)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(header)
  classes = [cell(name) for name in results.classes]
  for i, file in enumerate(map(cell, results.files)):
    p = results.probabilities[i]
    row = [
      file,
      classes[p.argmax()],
      *(f"{x:.6f}" for x in (p.max(), *p)),
    ]
    if i in results.bad:
      row = [file] + [""] * (len(p) + 2)
    if results.truth is not None:
      row.append(classes[results.truth[i]])
    if results.bad:
      row.append(cell(results.bad.get(i, "")))
    writer.writerow(row)
  # The name of a file may not be valid text.
  return codecs.BOM_UTF8 + text.getvalue().encode("utf-8", "backslashreplace")


def cell(text: str) -> str:
  """Puts an apostrophe wherever a spreadsheet might see the start of a formula.

  DESCRIPTION says how to restore the text.
  """
  return _RISKY.sub("'", text)


def _disarmed(results, path: str) -> str:
  """Returns a message about the names that `cell` changes, or ""."""
  names = {*results.files, *results.classes}
  count = sum(cell(name) != name for name in names)
  if not count:
    return ""
  return (
    f"\nnames that a spreadsheet would run as formulas: {count}; in {path} "
    "they have an apostrophe in front (--help says how to remove it)"
  )


def _facts(classifier, support, contents) -> dict[str, str]:
  """Returns the facts at the top of the report, {name: text}."""
  shots = sorted({len(images) for images in support.values()})
  number = str(shots[0]) if len(shots) == 1 else f"{shots[0]} to {shots[-1]}"
  facts = classifier.describe()
  facts["examples"] = f"{number} per class"
  repeated = contents & set(classifier.support_contents_)
  if repeated:
    facts["note"] = (
      f"{len(repeated)} of the queries are also examples; their predictions "
      "prove nothing"
    )
  return facts
