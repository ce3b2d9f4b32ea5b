"""From a form to what the page shows, as plain JSON."""

import base64
import io

import numpy as np
from PIL import Image

from deepemd_jax.demo.form import Form
from deepemd_jax.evaluation import plots
from deepemd_jax.inference.classifier import FewShotClassifier
from deepemd_jax.inference.explanation import Explanation, Shown


def classify(form: Form, checkpoint) -> dict:
  """Classifies the query of a form.

  Args:
    form: what was sent.
    checkpoint: as `FewShotClassifier` takes it.

  Returns:
    "predicted": number of a class, from 0; "facts": as
    `FewShotClassifier.describe`; "query": a picture, a data URL; "classes": of
    each its "name", "probability", "logit", and how it was matched: "support"
    and "query" with their pictures, "pairs" and "remainder", which with the
    pairs' contributions sums to the logit, and "images", their number.

  Raises:
    InputError: there is no such variant or solver, or no checkpoint any more.
  """
  classifier = FewShotClassifier(checkpoint, form.variant, form.solver)
  # Numbers, so that the order of the form is kept.
  classifier.fit(
    [image for found in form.support for image in found],
    [k for k, found in enumerate(form.support) for _ in found],
  )
  whys = [classifier.explain(form.query, k) for k in range(len(form.names))]
  return {
    "predicted": int(np.argmax([why.logit for why in whys])),
    "facts": classifier.describe(),
    "query": _url(whys[0].query.picture),
    "classes": [
      {"name": name, **_match(why)}
      for name, why in zip(form.names, whys, strict=True)
    ],
  }


def _match(why: Explanation) -> dict:
  return {
    "probability": why.probability,
    "logit": why.logit,
    "images": why.images,
    "remainder": why.remainder,
    "support": {"picture": _url(why.support.picture), **_side(why.support)},
    "query": _side(why.query),
    "pairs": [pair._asdict() for pair in why.pairs],
  }


def _side(shown: Shown) -> dict:
  """Its size in pixels, which boxes are in, and its picture under weights."""
  height, width = shown.size
  weighted = plots.weighted(shown.picture, shown.small_boxes(), shown.weights)
  return {"width": width, "height": height, "weighted": _url(weighted)}


def _url(picture: np.ndarray) -> str:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "PNG")
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
