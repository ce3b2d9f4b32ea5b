"""Compares the time of a backbone with PyTorch and ONNX Runtime.

    python -m benchmarks.backbone_speed            # only ours
    python -m benchmarks.backbone_speed --smoke    # small, for CI

    python -m venv peers
    peers/bin/pip install torch transformers efficientnet-lite-pytorch \
        onnx onnxscript onnxruntime
    python -m benchmarks.backbone_speed --peers peers/bin/python

Weights are random. Each library has its own process. They take turns, and the
table has medians. The memory is the peak of a process, which includes the
library itself. The threads of PyTorch and of ONNX Runtime wait for each other
without sleeping. If other programs use the cores, wall-clock times mean little:
then use `--threads 1` and read the CPU milliseconds.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

from benchmarks import backbone_worker, measuring

_ROOT = pathlib.Path(__file__).parents[1]
_WORKER = "from benchmarks import backbone_worker; backbone_worker.main()"
_PAUSE = 0.3  # seconds until threads that wait for more work go to sleep
CASES = (
  ("lite0", 224),
  ("vit_s14", 224),
  ("vit_s14", 518),
  ("vit_b14", 224),
  ("vit_b14", 518),
)


class _Worker:
  """A network in another process."""

  def __init__(self, python: str, library: str, *case) -> None:
    self._process = subprocess.Popen(
      [python, "-c", _WORKER, library, *map(str, case)],
      cwd=_ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def __call__(self) -> dict:
    """Makes one call; returns {"seconds", "cpu_seconds", "peak_mb"}.

    Raises:
      ChildProcessError: the process ended.
    """
    assert self._process.stdin and self._process.stdout
    try:
      self._process.stdin.write("\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # the reason is read below
    for line in self._process.stdout:
      if line.startswith("answer "):
        return json.loads(line.removeprefix("answer "))
    raise ChildProcessError(self._process.communicate()[1].strip()[-300:])

  def end(self) -> None:
    self._process.kill()
    self._process.communicate()


def measure(
  libraries: dict[str, str],
  case: tuple[str, int],
  count: int,
  *,
  turns: int,
  threads: int,
) -> dict[str, dict]:
  """Measures the medians of each library.

  Args:
    libraries: {library: interpreter}.
    case: the name of the network, and the side of the images in pixels.
    count: number of images per call.
    turns: number of calls of each library.
    threads: number of threads of each library; 0 uses all cores.

  Returns:
    {library: milliseconds per image, "ms" of wall-clock time and "cpu_ms" of
    all cores together, and "peak_mb"}; or {library: {"failed": reason}}.
  """
  workers = {
    library: _Worker(python, library, *case, count, threads)
    for library, python in libraries.items()
  }
  answers: dict[str, list[dict]] = {library: [] for library in workers}
  found: dict[str, dict] = {}
  try:
    for turn in range(turns + 1):  # the first turn waits until all are ready
      for library, worker in workers.items():
        if library in found:
          continue
        time.sleep(_PAUSE)
        try:
          answer = worker()
        except ChildProcessError as error:
          found[library] = {"failed": str(error)}
          continue
        if turn:
          answers[library].append(answer)
  finally:
    for worker in workers.values():
      worker.end()
  for library, own in answers.items():
    if own:
      seconds, cpu_seconds = (
        1e3 / count * statistics.median(x[key] for x in own)
        for key in ("seconds", "cpu_seconds")
      )
      peak = max(x["peak_mb"] for x in own)
      found[library] = {"ms": seconds, "cpu_ms": cpu_seconds, "peak_mb": peak}
  return {library: found[library] for library in libraries}


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--peers", help="an interpreter that has the others")
  parser.add_argument("--only", default="", help="networks that begin so")
  parser.add_argument("--images", type=int, nargs="+", default=[1, 8])
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--threads", type=int, default=0, help="0: all cores")
  parser.add_argument("--json", help="also write the rows to this file")
  parser.add_argument("--smoke", action="store_true")
  return parser.parse_args()


def _smoke() -> None:
  """Measures our smallest network in this process."""
  call = backbone_worker.make("ours", "tiny", 28, 1)
  call()
  seconds = backbone_worker.seconds_of(call)["seconds"]
  print(f"tiny 28: {1e3 * seconds:.2f} ms an image")


def main() -> None:
  """Prints the table."""
  options = _parse()
  if options.smoke:
    return _smoke()
  libraries = {"ours": sys.executable}
  if options.peers:
    libraries |= dict.fromkeys(("torch", "onnx"), options.peers)
  print(f"{'network':<12}{'images':>7}  {'library':<8}", end="")
  print(f"{'ms an image':>12}{'ours is':>9}{'of CPU':>9}{'ours is':>9}", end="")
  print(f"{'peak MB':>9}")
  rows = []
  for name, size in CASES:
    if not name.startswith(options.only):
      continue
    for count in options.images:
      found = measure(
        libraries,
        (name, size),
        count,
        turns=options.turns,
        threads=options.threads,
      )
      for library, row in found.items():
        facts = {"network": name, "size": size, "images": count}
        rows.append(facts | {"library": library} | row)
        print(f"{name:<8}{size:>4}{count:>7}  {library:<8}", end="")
        if "failed" in row:
          print(f"  {row['failed'].splitlines()[-1]:.80}", flush=True)
          continue
        for key, width in (("ms", 12), ("cpu_ms", 9)):
          ratio = found["ours"][key] / row[key]
          print(f"{row[key]:>{width}.1f}{ratio:>9.2f}", end="")
        print(f"{row['peak_mb']:>9.0f}", flush=True)
  measuring.write_json(options.json, rows)


if __name__ == "__main__":
  main()
