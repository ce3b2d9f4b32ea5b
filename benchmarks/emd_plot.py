"""Plots the measurements of `emd_solvers`."""

import pathlib

import jax


def error_against_time(
  rows: list[dict], judge_name: str, path: pathlib.Path
) -> None:
  """Plots the error against the time at one size.

  Args:
    rows: the rows from `emd_solvers.measure`.
    judge_name: the name of the reference solver of the errors.
    path: path of the picture.
  """
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
  # The reference has no error, so only its time is drawn.
  judge = next(row for row in rows if row["solver"] == judge_name)
  axes.axvline(
    judge["microseconds"], color="0.6", ls="--", label=judge["solver"]
  )
  rest = [row for row in rows if row is not judge]
  for row, marker in zip(rest, "osD^v<>pP", strict=False):
    axes.loglog(
      row["microseconds"],
      max(row["error_max"], 1e-9),
      marker,
      ms=7,
      alpha=0.85,
      label=row["solver"],
    )
  figure.legend(loc="outside right center", fontsize=8, frameon=False)
  axes.set_xlabel("microseconds per problem")
  axes.set_ylabel("worst error of the value / mass")
  axes.set_title(
    f"{rows[0]['nodes']} x {rows[0]['nodes']} nodes, batch {rows[0]['batch']}, "
    f"{jax.devices()[0].device_kind}",
    fontsize=10,
  )
  axes.grid(alpha=0.3)
  figure.savefig(path, dpi=150)
