"""Checks the README and the pages of docs/.

Snippets run, no link is broken, and the reference has every public name.
"""

import importlib
import json
import pkgutil
import re
import urllib.parse

import jax.numpy as jnp
import pytest
from commands import COLORS, paint
from flax import nnx
from paths import ROOT
from recipes import tiny_run

import deepemd_jax
from deepemd_jax import __main__, convert, emd, models
from deepemd_jax.checkpoints import pretrained
from deepemd_jax.config import variants
from deepemd_jax.models import backbone

README = ROOT / "README.md"
PAGES = sorted(
  [
    *(README, ROOT / "benchmarks" / "README.md"),
    ROOT / "deepemd_jax" / "emd" / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs" / "api").glob("*.md"),
    *(ROOT / "docs" / "notebooks").glob("*.ipynb"),
  ]
)
CODE = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page) -> str:
  """Returns the Markdown of a page; for a notebook, that of its text cells."""
  text = page.read_text("utf-8")
  if page.suffix != ".ipynb":
    return text
  cells = json.loads(text)["cells"]
  texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
  return "\n\n".join(texts)


def anchors(page) -> set[str]:
  """Returns the anchors of a page's headings, as GitHub makes them."""
  headings = re.findall(r"^#+ (.*)", CODE.sub("", text_of(page)), re.M)
  plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
  return {heading.strip().replace(" ", "-") for heading in plain}


def name_of(page) -> str:
  return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_within_the_repository_lead_somewhere(page):
  for link in LINK.findall(CODE.sub("", text_of(page))):
    path, _, anchor = urllib.parse.unquote(link).partition("#")
    if re.match(r"\w+:", path):
      continue
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    assert target.is_relative_to(ROOT), link
    if anchor:
      assert anchor in anchors(target), link


def test_every_page_is_linked_from_the_start():
  """The link is on the index of the site or on the index of the reference."""
  docs = ROOT / "docs"
  for index in (docs / "index.md", docs / "api" / "index.md"):
    trees = re.findall(
      r"^```{toctree}\n(.*?)^```", index.read_text(), re.M | re.S
    )
    listed = set(" ".join(trees).split())
    for page in index.parent.glob("*.md"):
      assert page == index or page.stem in listed, page
  for page in (docs / "notebooks").glob("*.ipynb"):
    assert f"notebooks/{page.stem}" in (docs / "index.md").read_text()


def test_notebooks_are_committed_without_outputs():
  for page in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
    for cell in json.loads(page.read_text("utf-8"))["cells"]:
      assert not cell.get("outputs") and not cell.get("execution_count")


def test_the_readme_is_short_and_names_what_to_do():
  text = README.read_text("utf-8")
  assert len(text.splitlines()) <= 150
  for words in (
    *("make quickstart", "make test", "make docs", "deepemd classify"),
    *("python -m deepemd_jax.main --config=configs/cub.py", "orbax", "TPU"),
  ):
    assert words in text


def readme_snippets() -> list[str]:
  return re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)


def test_the_readmes_classifier_runs(tmp_path, monkeypatch):
  """The snippet is run unchanged, with a tiny encoder as the default."""
  classifier, _, _ = readme_snippets()
  for i, (name, color) in enumerate(
    (("cat1", "red"), ("cat2", "red"), ("dog", "blue"), ("unknown", "blue"))
  ):
    paint(tmp_path / f"{name}.jpg", COLORS[color], i)
  monkeypatch.chdir(tmp_path)
  tiny = tiny_run(tmp_path / "tiny")
  load = pretrained.load
  monkeypatch.setattr(pretrained, "load", lambda checkpoint: load(tiny))
  names: dict = {}
  exec(classifier, names)
  assert (tmp_path / "why.png").exists()
  assert names["why"].label == "dog"


def test_the_readmes_distance_runs():
  _, distance, _ = readme_snippets()
  names: dict = {}
  exec(distance, names)
  assert names["value"].shape == (8,) and names["plan"].converged.all()
  assert jnp.allclose(names["gradient"], names["plan"].flow, atol=1e-6)


def test_the_readmes_module_runs():
  """Only shapes are computed: numbers take long with the full network."""
  _, _, module = readme_snippets()

  def logits():
    names: dict = {}
    exec(module, names)
    return names["logits"]

  assert nnx.eval_shape(logits).shape == (5, 15, 5)


def test_every_command_variant_and_backbone_is_on_a_page():
  text = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
  for name in __main__.COMMANDS:
    command = "main" if name == "train" else name
    assert re.search(rf"python -m deepemd_jax[ .]{command}\s", text), name
  text = (ROOT / "docs" / "configs.md").read_text()
  for name in (*variants.COMMON, *backbone.BACKBONES):
    assert f"`{name}`" in text, name


def in_the_reference() -> set[str]:
  """Returns the full names in directives, and the names in their modules."""
  found = set()
  for page in (ROOT / "docs" / "api").glob("*.md"):
    for kind, name, options in re.findall(
      r"^\.\. auto(\w+):: ([\w.]+).*\n((?:   .*\n)*)", page.read_text(), re.M
    ):
      found.add(name)
      if kind == "module" and ":members:\n" in options:
        module = importlib.import_module(name)
        found |= {f"{name}.{x}" for x in public(module)}
  return found


def public(module) -> set[str]:
  """Returns the functions and classes that a module lists or defines."""
  if hasattr(module, "__all__"):
    return set(module.__all__)
  return {
    name
    for name, value in vars(module).items()
    if not name.startswith("_")
    and callable(value)
    and getattr(value, "__module__", None) == module.__name__
  }


def test_every_public_name_is_in_the_reference():
  reference = in_the_reference()
  expected = {f"deepemd_jax.emd.{name}" for name in emd.__all__}
  expected |= {f"deepemd_jax.emd.solvers.{x}" for x in public(emd.solvers)}
  expected |= {f"{convert.__name__}.{name}" for name in public(convert)}
  for module in pkgutil.iter_modules(models.__path__, "deepemd_jax.models."):
    names = public(importlib.import_module(module.name))
    expected |= {f"{module.name}.{name}" for name in names}
  # These have shorter names in the reference.
  reference.add("deepemd_jax.models.deepemd.DeepEMD")
  expected |= {"deepemd_jax.models.DeepEMD", "deepemd_jax.FewShotClassifier"}
  missing = sorted(expected - reference)
  assert not missing, f"add a section in docs/api/ for {missing}"
  listed = (ROOT / "docs" / "api" / "index.md").read_text()
  for name in deepemd_jax.__all__:
    assert f"deepemd_jax.{name}`" in listed, name
