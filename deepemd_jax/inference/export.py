"""Exports a trained encoder as programs that need only JAX.

    python -m deepemd_jax export --checkpoint RUN --out DIR

makes DIR, a folder with

    encoder.stablehlo     converts images to nodes
    classifier.stablehlo  converts one image of each class, and queries, to
                          logits
    manifest.json         the inputs and outputs, how to load the programs, and
                          checksums of the programs and of itself
    config.json, metatrain/, pretrain/
                          the best encoders; with them DIR is a workdir for the
                          stage evaluate, `FewShotClassifier`, classify and
                          search

The programs are StableHLO from `jax.export`, each for CPU, CUDA and TPU. They
contain the parameters and the processing of images: resizing, cropping and
normalization. Any number and size of images is possible.

A program cannot call back to the host. So `NetworkSimplex`, the default on a
CPU, is exported as `InteriorPoint`, which is exact, too, and runs everywhere.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import reprlib
import shutil
from collections.abc import Callable

from deepemd_jax.errors import InputError
from deepemd_jax.inference import options as shared
from deepemd_jax.utils import files

HELP = "save the encoder and a classifier as programs that need only JAX"
DESCRIPTION = __doc__
PLATFORMS = ("cpu", "cuda", "tpu")
_NAMES = ("encoder.stablehlo", "classifier.stablehlo")
_WEIGHTS = "backbone"  # the copied folder of a vision transformer
_FORMAT = 2  # format 1 has no checksum of the manifest
_LARGEST = 2**31  # bytes of a program, the limit of FlatBuffers
_LOAD = (
  "import pathlib, jax, numpy",
  "from jax import export  # needs the package flatbuffers",
  'file = bytearray(pathlib.Path("classifier.stablehlo").read_bytes())',
  "classify = jax.jit(export.deserialize(file).call)",
  "logits = classify(support, query)  # NumPy arrays as `inputs` says",
)


@dataclasses.dataclass(frozen=True)
class Programs:
  """The programs that `load` reads, compiled once for each input shape.

  Attributes:
    encode: converts uint8 images to float32 nodes [images, n, c].
    classify: converts uint8 images, one of each class, and uint8 queries to
      float32 logits [queries, way]; larger means more similar.
    manifest: the content of manifest.json. It gives the shape of an image for
      each program: [height, width, 3] of any size or, if nodes are crops,
      [crops, size, size, 3].
  """

  encode: Callable
  classify: Callable
  manifest: dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  shared.add_checkpoint(parser)
  parser.add_argument(
    "--out", metavar="DIR", required=True, help="the folder to make"
  )


def run(options: argparse.Namespace) -> str:
  """Runs the export and returns the message to print."""
  save(options.checkpoint, options.out)
  return f"{options.out} is ready; its manifest.json says how to use it"


def save(checkpoint, directory) -> dict:
  """Exports a run.

  Args:
    checkpoint: the run, as for `pretrained.load`.
    directory: the folder to make. It must be empty or not exist.

  Returns:
    The manifest.

  Raises:
    InputError: there is no trained encoder, or the directory is in use or
      cannot be written. No files are left behind.
  """
  from deepemd_jax.checkpoints import pretrained
  from deepemd_jax.config import stored

  with pretrained.new_workdir(directory) as workdir:
    trained = pretrained.load(checkpoint)
    _copy_run(checkpoint, trained, workdir)
    manifest = _described(trained) | {"programs": {}}
    for name, program in _programs(trained).items():
      content = bytes(program.serialize())
      (workdir / name).write_bytes(content)
      manifest["programs"][name] = {
        "inputs": [_shown(x) for x in program.in_avals],
        "outputs": [_shown(x) for x in program.out_avals],
        "sha256": hashlib.sha256(content).hexdigest(),
      }
    text = json.dumps(stored.sealed(manifest), indent=2) + "\n"
    (workdir / "manifest.json").write_text(text)
  return json.loads(text)


def _copy_run(checkpoint, trained, workdir: pathlib.Path) -> None:
  """Copies the config and the encoders, which `pretrained.load` needs."""
  from deepemd_jax.checkpoints import pretrained
  from deepemd_jax.config import stored
  from deepemd_jax.models.backbone import FolderWeights

  fields = pretrained.fields_of(checkpoint)
  weights = trained.settings.backbone.weights
  if isinstance(weights, FolderWeights):
    fields["model"]["weights"] = _WEIGHTS
    (workdir / _WEIGHTS).mkdir()
    for name, *_ in weights.files:
      source = pathlib.Path(weights.folder) / name
      shutil.copyfile(source, workdir / _WEIGHTS / name)
  text = json.dumps(stored.sealed(fields), indent=2, sort_keys=True) + "\n"
  (workdir / "config.json").write_text(text)
  if weights is not None:
    return  # the weights are copied above, or come with their package
  source = pathlib.Path(checkpoint)
  meta = {"exported_from": source.resolve().name}
  # The encoders of all stages, because the prototype head may be tested with
  # another one.
  encoders = pretrained.best_encoders(source, trained.settings.backbone)
  for best in encoders.values():
    pretrained.save_encoder(workdir, best, meta)


def _shown(aval) -> str:
  return f"{aval.dtype}[{', '.join(map(str, aval.shape))}]"


def load(directory) -> Programs:
  """Reads the programs of an exported folder.

  Raises:
    InputError: the folder was not exported or is damaged, or this version of
      JAX cannot read it.
  """
  import jax
  from jax import export

  directory = pathlib.Path(directory)
  manifest = _manifest(directory / "manifest.json")
  try:
    sums = {name: manifest["programs"][name]["sha256"] for name in _NAMES}
    made = manifest["versions"]["jax"]
    contents = {
      name: files.read_regular(directory / name, _LARGEST) for name in _NAMES
    }
  except (OSError, LookupError, TypeError) as error:
    raise InputError(
      f"{str(directory)!r} is not a folder that export wrote ({error})"
    ) from error
  calls = {}
  for name, content in contents.items():
    if hashlib.sha256(content).hexdigest() != sums[name]:
      raise InputError(
        f"{str(directory / name)!r} is damaged (checksum); export it again"
      )
    try:
      calls[name] = jax.jit(export.deserialize(bytearray(content)).call)
    except Exception as error:  # versions of JAX raise errors of many types
      raise InputError(
        f"JAX {jax.__version__} cannot read {str(directory / name)!r}, which "
        f"JAX {made!r:.80} wrote ({error!r:.300}); export it again"
      ) from error
  encode, classify = (calls[name] for name in _NAMES)
  return Programs(encode, classify, manifest)


def _manifest(path: pathlib.Path) -> dict:
  """Returns the content of manifest.json.

  Raises:
    InputError: the file is missing, damaged, or of a newer format.
  """
  from deepemd_jax.config import stored

  manifest = stored.read_object(path, "a file that export wrote")
  number = manifest.get("format")
  if type(number) is not int or number < 1:
    raise InputError(
      f"in {str(path)!r} format is {reprlib.repr(number)}, which should be a "
      "whole number; export it again"
    )
  if number > _FORMAT:
    raise InputError(
      f"{str(path)!r} has format {number:.4g}, but this version reads up to "
      f"{_FORMAT}; use a newer deepemd_jax, or export it again"
    )
  if number > 1 or stored.CHECKSUM in manifest:
    stored.verify(manifest, path, "export it again")
  return manifest


def _programs(trained) -> dict:
  """Returns {file name: program lowered for all platforms} of an encoder."""
  import jax
  import numpy as np
  from jax import export

  from deepemd_jax.evaluation.features import Features
  from deepemd_jax.models import matching

  features, view = Features.of(trained.settings), trained.settings.view
  variables = trained.encoder.variables
  solver = _solver(trained.settings)
  temperature = trained.settings.heads.temperature

  def nodes(images):
    if view.is_whole:
      return features.nodes_of_images(variables, images)
    pixels = view.normalize(images.astype(np.float32))
    return features.nodes(variables, pixels)

  def logits(support, query):
    return matching.logits(nodes(query), nodes(support), solver, temperature)

  scope = export.SymbolicScope()

  def images(count, sides=""):
    shape = f"{count}, {sides}height, {sides}width, 3"
    if not view.is_whole:
      shape = f"{count}, {view.crops_per_image}, {view.size}, {view.size}, 3"
    shape = export.symbolic_shape(shape, scope=scope)
    return jax.ShapeDtypeStruct(shape, np.uint8)

  def lower(function, *arguments):
    return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)

  both = images("way", "support_"), images("queries", "query_")
  programs = lower(nodes, images("images")), lower(logits, *both)
  return dict(zip(_NAMES, programs, strict=True))


def _solver(settings):
  """Returns the run's EMD solver, or `InteriorPoint` if that runs on the host.

  `InteriorPoint` is used without its kernel, which needs one kind of device.
  """
  from deepemd_jax import emd

  own = settings.heads.solver
  on_host = own is None or getattr(own, "on_host", False)
  if on_host or isinstance(own, emd.InteriorPoint):
    return emd.InteriorPoint(kernel=False)
  return own


def _described(trained) -> dict:
  """Returns the part of the manifest that describes the programs."""
  from deepemd_jax.data.views import evaluation_side

  settings, view = trained.settings, trained.settings.view
  if view.is_whole:
    outside = "decoding to upright RGB; images of one call have one size"
    kept = f"{view.size} x {view.size} pixels"
    resized = f"the whole image to {kept}"
    if view.whole_crop == "center":
      side = evaluation_side(view)
      resized = f"the whole image to {side} x {side}, its central {kept} kept"
  else:
    resized = "none"
    outside = (
      "decoding to upright RGB; crops, cut and resized by Pillow (BILINEAR) as "
      "in deepemd_jax.inference.crops"
    )
  return {
    "format": _FORMAT,
    "encoder": trained.encoder.place,
    "parameters_sha256": trained.fingerprint,
    "nodes": view.kind,
    "in_the_programs": {
      "resizing": resized,
      "mean": view.mean,
      "std": view.std,
      "solver": repr(_solver(settings)),
      "temperature": settings.heads.temperature,
    },
    "before_them": outside,
    "platforms": PLATFORMS,
    "versions": {
      name: importlib.metadata.version(name) for name in ("jax", "jaxlib")
    },
    "runs_with": "JAX up to 3 weeks older and up to 6 months newer than this "
    "one, as jax.export promises; and flatbuffers",
    "load": _LOAD,
  }
