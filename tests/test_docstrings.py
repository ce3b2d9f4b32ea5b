"""Checks what docstrings contain, by reading the source."""

import ast
import functools
import re

import pytest
from paths import ROOT

PACKAGE = ROOT / "deepemd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 100
# These words send a reader elsewhere without saying where.
VAGUE = re.compile(r"\bsee there\b|\blikewise\b", re.IGNORECASE)
IS_ARRAY = re.compile(r"\b(Array|ndarray)\b")
SHAPE_IN_THE_ANNOTATION = re.compile(r"\b(Bool|Float|Int|Shaped)\[")
# The functions that other programs call; see test_public_names. The shapes of a
# class are in its docstring or in those of its methods.
PUBLIC = {
  "checkpoints/resnet12_names.py": ("from_torch",),
  "data/crop_resize.py": ("crop_resize",),
  "emd/all_pairs.py": ("pairwise",),
  "emd/api.py": ("distance", "distance_and_flow", "solve"),
  "emd/interior_point.py": ("InteriorPoint",),
  "emd/network_simplex.py": ("NetworkSimplex",),
  "emd/point_clouds.py": ("wasserstein",),
  "emd/problem.py": ("Plan",),
  "emd/regularized_qp.py": ("RegularizedQP",),
  "emd/sinkhorn.py": ("Sinkhorn",),
  "inference/classifier.py": ("FewShotClassifier",),
  "models/deepemd.py": ("DeepEMD",),
  "models/matching.py": ("cross_reference_weights", "logits"),
  "models/nodes.py": ("pyramid",),
  "models/resnet12.py": ("encode",),
  "models/sfc.py": ("fit",),
}


@functools.cache
def tree(path):
  return ast.parse(path.read_text("utf-8"))


def described(path):
  """Yields (place, node, docstring) of everything that has a docstring."""
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      if text := ast.get_docstring(node, clean=False):
        yield f"{path}:{getattr(node, 'lineno', 1)}", node, text


def parameters(function):
  """Returns the parameters of a function, without `self` and `cls`."""
  given = function.args
  every = (*given.posonlyargs, *given.args, *given.kwonlyargs)
  return [x for x in every if x.arg not in ("self", "cls")]


def public_functions(path):
  """Yields public functions and methods, with their docstrings."""
  for node in tree(path).body:
    is_class = isinstance(node, ast.ClassDef)
    for member in node.body if is_class else [node]:
      if isinstance(member, ast.FunctionDef) and not (
        member.name.startswith("_") or getattr(node, "name", "")[:1] == "_"
      ):
        yield member, ast.get_docstring(member) or ""


def test_no_docstring_is_vague_or_wide():
  for path in FILES:
    for where, _, text in described(path):
      assert not VAGUE.search(text), where
      assert max(map(len, text.splitlines())) <= LONGEST, where


def test_functions_of_arrays_give_the_shapes():
  """Shapes are in brackets, in the docstring or in the annotations.

  A random key has no shape.
  """
  for path in FILES:
    for function, text in public_functions(path):
      hints = [x.annotation for x in parameters(function) if x.arg != "key"]
      hints = " ".join(ast.unparse(x) for x in (*hints, function.returns) if x)
      if IS_ARRAY.search(hints) and not SHAPE_IN_THE_ANNOTATION.search(hints):
        assert "[" in text, f"{path}:{function.lineno}"


def test_a_list_of_parameters_has_all_of_them():
  for path in FILES:
    for function, text in public_functions(path):
      if "Args:\n" in text:
        for parameter in parameters(function):
          assert re.search(rf"^ +{parameter.arg}: ", text, re.MULTILINE), (
            f"{path}:{function.lineno}: {parameter.arg}"
          )


@pytest.mark.parametrize("path", PUBLIC)
def test_public_names_have_shapes_and_meaning(path):
  there = {getattr(x, "name", ""): x for x in tree(PACKAGE / path).body}
  for name in PUBLIC[path]:
    text = ast.get_docstring(there[name]) or ""
    for member in there[name].body:
      if isinstance(member, ast.FunctionDef):
        text += ast.get_docstring(member) or ""
    assert "[" in text and len(text) > 60, name
