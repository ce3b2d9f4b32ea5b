"""The report of predictions, one HTML file that needs no network.

Names of files and classes are escaped. The page's Content-Security-Policy also
forbids scripts and everything outside the page.
"""

import base64
import dataclasses
import html
import io
from collections.abc import Callable, Iterable

import numpy as np

from deepemd_jax.evaluation import plots
from deepemd_jax.inference import calibration
from deepemd_jax.inference.explanation import Explanation

_RIGHT, _WRONG = "0,158,115", "213,94,0"  # red, green, blue
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; padding: 0 1em;
  max-width: 960px; color: #222; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2em; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
td, th { padding: 3px 9px; text-align: left; vertical-align: top;
  border-bottom: 1px solid #ddd; font-weight: normal; }
thead th { border-bottom: 2px solid #888; font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
section { border: 1px solid #ccc; border-radius: 6px; padding: 12px 16px;
  margin: 14px 0; }
section.wrong { border-left: 6px solid #D55E00; }
section.right { border-left: 6px solid #009E73; }
section img { max-width: 100%; } section p { margin: 4px 0; }
.file { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.bar { background: #0072B2; height: 9px; display: inline-block;
  border-radius: 2px; }
.quiet { color: #666; }
"""
_HOW_TO_READ = (
  "<p class=quiet>On the left is the example that is most similar to the "
  "query, on the right the query. Between them, both are shown again, darkened "
  "where their weights are small. Lines join the pairs of regions that "
  "contribute most. A score (logit) is the sum of the contributions of all "
  "pairs. If a class has several examples, its nodes are fitted to all of them "
  "and shown on this one. Their places are exact with fcn and grid, and "
  "approximate with sampling.</p>"
)


@dataclasses.dataclass(frozen=True)
class Results:
  """The predictions of a classifier for some images.

  Attributes:
    classes: the names of the classes.
    files: the name of each image.
    probabilities: [N, way], 0 to 1; rows of bad images have no meaning.
    truth: int [N], the column of the true class, or None if it is unknown.
    bad: {number of an image that was left out: the reason}.
  """

  classes: tuple[str, ...]
  files: tuple[str, ...]
  probabilities: np.ndarray
  truth: np.ndarray | None
  bad: dict[int, str]

  def good(self) -> np.ndarray:
    """Returns the numbers of the classified images, int [n]."""
    return np.array([i for i in range(len(self.files)) if i not in self.bad])

  def summary(self) -> str:
    """Returns the counts and the accuracy in one line."""
    rows = self.good()
    images = "1 image" if len(rows) == 1 else f"{len(rows)} images"
    text = f"{images}, {len(self.classes)} classes"
    if self.truth is not None:
      right = self.probabilities[rows].argmax(1) == self.truth[rows]
      share = 100 * right.mean()
      text += f": {right.sum()} right, {share:.1f} %"
    if self.bad:
      text += f"; {len(self.bad)} left out, unreadable"
    return text


def page(
  results: Results,
  *,
  facts: dict[str, str],
  explain: Callable[[int, str], Explanation],
  pictures: int,
  progress: Callable[[int, int], None],
) -> bytes:
  """Makes the report.

  Args:
    results: the predictions to report.
    facts: {name: text} to show at the top.
    explain: explains the match of an image, given by its number, with a class,
      given by its name.
    pictures: number of images whose matches are drawn, the worst first.
    progress: called with the number of pictures done, and the total.

  Returns:
    The HTML document, in UTF-8.
  """
  rows = results.good()
  probabilities = results.probabilities[rows]
  truth = None if results.truth is None else results.truth[rows]
  order = rows[calibration.worst_first(probabilities, truth)]
  parts = [f"<h1>Predictions</h1><p>{_text(results.summary())}</p>"]
  parts.append(_table(None, ((name, value) for name, value in facts.items())))
  if results.bad:
    left = ((results.files[i], why) for i, why in sorted(results.bad.items()))
    parts.append("<h2>Left out</h2>" + _table(("file", "reason"), left))
  if truth is not None:
    parts.append(_confusion(results, rows))
    parts.append(_calibration(probabilities, truth))
  if pictures:
    first = "most wrong" if truth is not None else "least certain"
    parts.append(f"<h2>Matched regions, the {first} first</h2>{_HOW_TO_READ}")
  pictured = order[:pictures]
  for done, i in enumerate(pictured, 1):
    parts.append(_card(results, i, explain))
    progress(done, len(pictured))
  parts.append(_everything(results, order))
  # The name of a file may not be valid text.
  return _document("\n".join(parts)).encode("utf-8", "backslashreplace")


def _document(body: str) -> str:
  return (
    "<!doctype html><html lang=en><head><meta charset=utf-8>"
    "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
    "img-src data:; style-src 'unsafe-inline'\">"
    "<meta name=viewport content='width=device-width'>"
    f"<title>deepemd_jax: predictions</title><style>{_STYLE}</style></head>"
    f"<body>{body}</body></html>\n"
  )


def _text(value) -> str:
  return html.escape(str(value))


def _table(header, rows: Iterable[tuple]) -> str:
  """Returns a table; integers are aligned right, other cells are escaped."""
  lines = []
  if header:
    cells = "".join(f"<th>{_text(name)}</th>" for name in header)
    lines.append(f"<thead><tr>{cells}</tr></thead>")
  for row in rows:
    cells = "".join(
      f"<td class=n>{x}</td>"
      if isinstance(x, int)
      else f"<td class=file>{_text(x)}</td>"
      for x in row
    )
    lines.append(f"<tr>{cells}</tr>")
  return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _confusion(results: Results, rows: np.ndarray) -> str:
  """Returns the confusion matrix; darker cells have larger shares of a row."""
  way = len(results.classes)
  predicted = results.probabilities[rows].argmax(1)
  # pyrefly: ignore[unsupported-operation]: it is called if the truth is known
  counts = calibration.confusion(results.truth[rows], predicted, way)
  head = "".join(
    f"<th class=n title='{_text(name)}'>{k}</th>"
    for k, name in enumerate(results.classes, 1)
  )
  lines = [f"<thead><tr><th>true class</th>{head}</tr></thead>"]
  for k, name in enumerate(results.classes):
    shares = counts[k] / max(counts[k].sum(), 1)
    cells = "".join(
      f"<td class=n style='background:rgba({_RIGHT if j == k else _WRONG},"
      f"{0.6 * share:.2f})'>{count or ''}</td>"
      for j, (count, share) in enumerate(zip(counts[k], shares, strict=True))
    )
    lines.append(f"<tr><th>{k + 1} {_text(name)}</th>{cells}</tr>")
  return (
    "<h2>Confusion matrix</h2><p class=quiet>Images by true class (rows) and "
    "predicted class (columns, by number).</p><div class=wide><table>"
    f"{''.join(lines)}</table></div>"
  )


def _calibration(probabilities: np.ndarray, truth: np.ndarray) -> str:
  bins = calibration.calibration(probabilities, truth)
  figure = plots.reliability(bins.confidence, bins.accuracy, bins.counts)
  few = ""
  if len(truth) < 200:
    few = f" From {len(truth)} images, this is a rough estimate."
  return (
    "<h2>Calibration</h2><p>Expected calibration error "
    f"{100 * bins.error:.1f} points: how far, on average, the probability of "
    f"a prediction is from the share of correct predictions.{few}</p>"
    + _image(figure, "share of correct predictions against their probability")
  )


def _card(results: Results, i: int, explain) -> str:
  p = results.probabilities[i]
  best = int(p.argmax())
  kind, verdict = "", f"<b>{_text(results.classes[best])}</b>"
  columns = [best]
  if results.truth is not None:
    true = int(results.truth[i])
    kind = "right" if true == best else "wrong"
    if true != best:
      verdict += f", but it is <b>{_text(results.classes[true])}</b>"
      columns.append(true)
  bars = "".join(
    f"<tr><td>{_text(results.classes[k])}</td><td class=n>{p[k]:.3f}</td>"
    f"<td><span class=bar style='width:{round(200 * p[k])}px'></span></td></tr>"
    for k in np.argsort(-p, kind="stable")[:3]
  )
  explanations = [explain(i, results.classes[k]) for k in columns]
  titles = ["predicted", "true class"][: len(columns)]
  # No class names here, because the picture's font may lack their letters.
  pairs = [
    explanation.matched(f"{title}: {explanation.sum(3)}")
    for explanation, title in zip(explanations, titles, strict=True)
  ]
  figure = plots.matched_regions(pairs)
  picture = _image(figure, f"matched regions of {results.files[i]}")
  return (
    f"<section class='{kind}'><p class=file>{_text(results.files[i])}</p>"
    f"<p>{verdict}</p><table>{bars}</table>{picture}</section>"
  )


def _everything(results: Results, order: np.ndarray) -> str:
  truth = results.truth
  header = ["file", "prediction", "probability"]
  header += ["true class"] * (truth is not None)

  def cells(i):
    p = results.probabilities[i]
    row = (results.files[i], results.classes[p.argmax()], f"{p.max():.3f}")
    return row if truth is None else (*row, results.classes[truth[i]])

  return "<h2>All images</h2>" + _table(header, map(cells, order))


def _image(figure, description: str) -> str:
  """Returns a figure as an inline JPEG, which is a third of a PNG's size."""
  file = io.BytesIO()
  figure.savefig(file, format="jpg", pil_kwargs={"quality": 88})
  content = base64.b64encode(file.getvalue()).decode()
  return (
    f"<img alt='{_text(description)}' src='data:image/jpeg;base64,{content}'>"
  )
