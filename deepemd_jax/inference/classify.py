"""Classifies images by a few examples of each class.

python -m deepemd_jax.inference.classify --support DIR --query DIR --out CSV
"""

import csv
import io
import os
import pathlib
import sys

from deepemd_jax.data import folder
from deepemd_jax.errors import InputError
from deepemd_jax.utils import terminal


def _parse(arguments: list[str]):
  parser = terminal.Parser("classify", __doc__)
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
    help="what to classify: an image, a folder of images, or, where the truth "
    "is known, one directory per class with the names of those in --support",
  )
  parser.add_argument(
    "--out", metavar="CSV", required=True, help="predictions, replaced if there"
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
    help="matched regions shown in the report (default %(default)s), those of "
    "the worst predictions first",
  )
  parser.add_images("query")
  options = parser.parse_args(arguments)
  if options.pictures < 0:
    raise InputError(f"--pictures is {options.pictures}; use 0 or more")
  return options


def truth(
  query: str, paths: list[pathlib.Path], classes
) -> tuple[list[str] | None, str]:
  """The true classes, where the folder tells them.

  Returns:
    A class for each path if all lie in directories named as classes are, else
    None; and a remark if only some do.
  """
  if os.path.isfile(query):
    return None, ""
  parts = [path.relative_to(query).parts for path in paths]
  names = [p[0] if len(p) > 1 else "" for p in parts]
  others = sorted(set(names) - set(classes))
  if not others:
    return names, ""
  if len(others) == len(set(names)):
    return None, ""
  where = f"in {others[0]!r}" if others[0] else "in no directory"
  return None, (
    f"some query images lie in directories named as classes, others {where}: "
    "the truth is taken as unknown"
  )


def _work(options) -> tuple[dict[str, bytes], str]:
  support = folder.classes(options.support)
  if len(support) < 2:
    raise InputError(
      f"{options.support!r} has one class, {list(support)[0]!r}, which every "
      "image would get; give at least two"
    )
  paths = folder.below(options.query)
  labels, remark = truth(options.query, paths, support)
  outputs = [path for path in (options.out, options.report) if path]
  examples = [path for found in support.values() for path in found]
  for path in outputs:
    terminal.check_output(path, [*examples, *paths])
  if len({os.path.realpath(path) for path in outputs}) < len(outputs):
    raise InputError("--out and --report are the same file; give two names")

  import numpy as np

  from deepemd_jax.inference import classifier as classifiers
  from deepemd_jax.inference import encodings, report
  from deepemd_jax.utils.progress import Progress

  classifier = classifiers.FewShotClassifier(
    options.checkpoint, options.variant, options.solver, cache=options.cache
  )
  classifier.fit(
    examples, [name for name, found in support.items() for _ in found]
  )
  logits = np.zeros((len(paths), len(support)))
  bad: dict[int, str] = {}
  contents: set[str] = set()
  progress = Progress()
  try:
    scored = classifier.scored(
      paths, bad, lambda done: progress("images classified", done, len(paths))
    )
    for numbers, found, seen in scored:
      logits[numbers] = found
      contents |= set(seen)
    if not options.skip_bad or len(bad) == len(paths):
      encodings.refuse(paths, bad, ", or leave them out with --skip-bad")
    results = report.Results(
      classes=tuple(classifier.classes_.tolist()),
      files=tuple(map(str, paths)),
      probabilities=classifiers.softmax(logits),
      truth=labels and np.searchsorted(classifier.classes_, labels),
      bad=bad,
    )
    files = {options.out: table(results)}
    if options.report:
      files[options.report] = report.page(
        results,
        facts=_facts(classifier, support, contents),
        explain=lambda i, label: classifier.explain(paths[i], label),
        pictures=options.pictures,
        progress=lambda done, total: progress("pictures drawn", done, total),
      )
  finally:
    progress.close()
  if remark:
    print(remark, file=sys.stderr)
  return files, f"{results.summary()}\nwrote {' and '.join(files)}"


def table(results) -> bytes:
  """The predictions as CSV, UTF-8.

  Columns: file, prediction, probability, one "p <class>" per class; "label"
  where the truth is known; "skipped", the reason, where images were left out.
  """
  header = ["file", "prediction", "probability"]
  header += [f"p {name}" for name in results.classes]
  header += ["label"] * (results.truth is not None)
  header += ["skipped"] * bool(results.bad)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(header)
  for i, file in enumerate(results.files):
    p = results.probabilities[i]
    row = [
      file,
      results.classes[p.argmax()],
      *(f"{x:.6f}" for x in (p.max(), *p)),
    ]
    if i in results.bad:
      row = [file] + [""] * (len(p) + 2)
    if results.truth is not None:
      row.append(results.classes[results.truth[i]])
    if results.bad:
      row.append(results.bad.get(i, ""))
    writer.writerow(row)
  # A file's name need not be text.
  return text.getvalue().encode("utf-8", "backslashreplace")


def _facts(classifier, support, contents) -> dict[str, str]:
  """What a reader of the report should know, by name."""
  shots = sorted({len(found) for found in support.values()})
  number = str(shots[0]) if len(shots) == 1 else f"{shots[0]} to {shots[-1]}"
  facts = classifier.describe()
  facts["examples"] = f"{number} a class"
  repeated = contents & set(classifier.support_contents_)
  if repeated:
    facts["note"] = (
      f"{len(repeated)} of the queries are examples too: they are not evidence"
    )
  return facts


def main(arguments: list[str]) -> int:
  """The command line; the exit code."""
  return terminal.run(_parse, _work, arguments)


if __name__ == "__main__":
  terminal.leave(main(sys.argv[1:]))
