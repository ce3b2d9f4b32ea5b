"""Answers a form with the content of the page, as plain JSON."""

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
    form: the form that was sent.
    checkpoint: the checkpoint, as for `FewShotClassifier`.

  Returns:
    "predicted", the number of a class, from 0; "facts", the result of
    `FewShotClassifier.describe`; "query", a picture as a data URL; and
    "classes". Each class has its "name", "probability", "logit" and the number
    of its "images". Its match is "support" and "query" with their pictures, the
    "pairs", and the "remainder", the difference between the logit and the
    contributions of the pairs.

  Raises:
    InputError: there is no such variant or solver, or the checkpoint is gone.
  """
  classifier = FewShotClassifier(checkpoint, form.variant, form.solver)
  # The labels are numbers, so that classes keep the order of the form.
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
  """Returns an image's size in pixels, and its picture darkened by weights."""
  height, width = side.size
  weighted = plots.weighted(side.picture, side.small_boxes(), side.weights)
  return {"width": width, "height": height, "weighted": _url(weighted)}


def _url(picture: np.ndarray) -> str:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG")
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
