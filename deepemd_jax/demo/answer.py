"""Answers a form with what the page shows, as plain JSON."""

import base64
import io

import numpy as np
from PIL import Image

from deepemd_jax.demo.form import Form
from deepemd_jax.evaluation import plots
from deepemd_jax.inference.classifier import FewShotClassifier
from deepemd_jax.inference.explanation import Explanation, Side


def classify(form: Form, checkpoint) -> dict:
  """Classifies the query of a form.

  Args:
    form: what was sent.
    checkpoint: as `FewShotClassifier` takes it.

  Returns:
    "predicted": the number of a class, from 0; "facts": as
    `FewShotClassifier.describe`; "query": a picture, a data URL; "classes": for
    each its "name", "probability" and "logit", the number of its "images", and
    how it was matched: "support" and "query" with their pictures, the "pairs",
    and the "remainder", which sums with their contributions to the logit.

  Raises:
    InputError: there is no such variant or solver, or no checkpoint any more.
  """
  classifier = FewShotClassifier(checkpoint, form.variant, form.solver)
  # Numbers, so that the order of the form is kept.
  classifier.fit(
    [image for images in form.support for image in images],
    [k for k, images in enumerate(form.support) for _ in images],
  )
  explanations = [
    classifier.explain(form.query, k) for k in range(len(form.names))
  ]
  return {
    "predicted": int(np.argmax([each.logit for each in explanations])),
    "facts": classifier.describe(),
    "query": _url(explanations[0].query.picture),
    "classes": [
      {"name": name, **_match(explanation)}
      for name, explanation in zip(form.names, explanations, strict=True)
    ],
  }


def _match(explanation: Explanation) -> dict:
  support, query = explanation.support, explanation.query
  return {
    "probability": explanation.probability,
    "logit": explanation.logit,
    "images": explanation.images,
    "remainder": explanation.remainder,
    "support": {"picture": _url(support.picture), **_side(support)},
    "query": _side(query),
    "pairs": [pair._asdict() for pair in explanation.pairs],
  }


def _side(side: Side) -> dict:
  """The size of an image in pixels, the unit of the boxes, and its picture
  darkened where its weights are small."""
  height, width = side.size
  weighted = plots.weighted(side.picture, side.small_boxes(), side.weights)
  return {"width": width, "height": height, "weighted": _url(weighted)}


def _url(picture: np.ndarray) -> str:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG")
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
