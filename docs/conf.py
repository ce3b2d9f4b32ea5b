"""Sphinx settings of the site. `make docs` builds it."""

import os
import pathlib
import re
import sys

from jupyter_client import KernelManager
from sphinx.domains.python import PyObject

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# The notebooks run in processes of their own, on the CPU.
os.environ["PYTHONPATH"] = str(ROOT)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from deepemd_jax import __version__ as release  # noqa: E402, F401

project = "deepemd_jax"
copyright = "the authors of deepemd_jax, MIT license"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
language = "en"
smartquotes = False

# Markdown. Links to headings work as they do on GitHub.
myst_enable_extensions = []  # without formulas, the site loads no MathJax
myst_heading_anchors = 4

# Notebooks talk to the build through files. Through TCP others on the machine
# could listen, and Jupyter warns of it.
KernelManager.transport.default_value = "ipc"
# A cell that fails ends the build; nothing is taken from an earlier one.
nb_execution_mode = "force"
nb_execution_timeout = 900  # seconds a cell, on a busy machine
nb_execution_raise_on_error = True
nb_merge_streams = True

# Shapes and types are in the text of a docstring, not in its signature.
autodoc_typehints = "none"
autoclass_content = "both"
strip_signature_backslash = True  # so that `classes_` keeps its underscore
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# Types of attributes that belong to other packages, and to private rooms.
nitpick_ignore_regex = [
  ("py:class", r"(collections|flax|jax|numpy|PIL)\..*"),
  ("py:class", r"deepemd_jax\.evaluation\..*"),
]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"deepemd_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False

# Docstrings are plain text with a few conventions of Markdown. These are the
# headings of their sections, which napoleon reads.
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|References):$")


def _to_restructured_text(app, what, name, obj, options, lines):
  """Indented blocks are code; bars and stars are themselves."""
  del app, what, name, obj, options
  result, in_section, in_block = [], False, False
  for line in lines:
    if line and not line.startswith(" "):
      in_section, in_block = bool(_SECTION.match(line)), False
    if not in_section and line.startswith("    ") and not in_block:
      in_block = True
      result += [".. code-block:: text", ""]
    if not in_block:
      pieces = re.split(r"(`[^`]*`)", line)
      pieces[::2] = [re.sub(r"([|*])", r"\\\1", x) for x in pieces[::2]]
      line = "".join(pieces)
    result.append(line)
  lines[:] = result


def _skip_fields(app, what, name, obj, skip, options):
  """Fields of named tuples are in the text of the class."""
  del app, what, name, skip, options
  return True if type(obj).__name__ == "_tuplegetter" else None


def _keep_intervals(app, docname, source):
  """A number and its interval stay on one line of a table."""
  del app, docname
  source[0] = source[0].replace(" ± ", "\u00a0±\u00a0")


def setup(app):
  """Called by Sphinx; before napoleon, whose priority is 500."""
  for field in PyObject.doc_field_types:
    if field.name == "variable":
      field.label = "Attributes"  # as in the docstrings; not "Variables"
  app.connect("source-read", _keep_intervals)
  app.connect("autodoc-skip-member", _skip_fields)
  app.connect("autodoc-process-docstring", _to_restructured_text, priority=400)
