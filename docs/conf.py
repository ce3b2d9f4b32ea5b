"""Settings of Sphinx for the site, which `make docs` builds."""

import os
import pathlib
import re
import sys

from jupyter_client import KernelManager
from sphinx.domains.python import PyObject

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# The notebooks run in separate processes, on the CPU.
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

# Settings of Markdown. Links to headings work as they do on GitHub.
myst_enable_extensions = []  # without formulas, the site loads no MathJax
myst_heading_anchors = 4

# Notebooks talk to the build through TCP, where others on the machine could
# listen. Encryption also avoids Jupyter's warning of this.
KernelManager.transport_encryption.default_value = "auto"
# A cell that fails ends the build. No outputs of earlier builds are used.
nb_execution_mode = "force"
nb_execution_timeout = 900  # seconds a cell, on a busy machine
nb_execution_raise_on_error = True
nb_merge_streams = True

# The text of a docstring has the shapes and types. Signatures leave them out.
autodoc_typehints = "none"
autoclass_content = "both"
strip_signature_backslash = True  # so that `classes_` keeps its underscore
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# The reference has no pages for these types: they belong to other packages, or
# to parts of this package that it does not describe.
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
# headings of their sections. napoleon reads them.
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|References):$")


def _to_restructured_text(app, what, name, obj, options, lines):
  """Makes indented blocks code, and escapes bars and stars."""
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
  """Skips fields of named tuples, which the text of the class describes."""
  del app, what, name, skip, options
  return True if type(obj).__name__ == "_tuplegetter" else None


def _keep_intervals(app, docname, source):
  """Keeps a number and its interval on one line of a table."""
  del app, docname
  source[0] = source[0].replace(" ± ", "\u00a0±\u00a0")


def setup(app):
  """Connects the functions above. Sphinx calls it.

  The docstrings are changed before napoleon reads them; its priority is 500.
  """
  for field in PyObject.doc_field_types:
    if field.name == "variable":
      field.label = "Attributes"  # as in the docstrings; not "Variables"
  app.connect("source-read", _keep_intervals)
  app.connect("autodoc-skip-member", _skip_fields)
  app.connect("autodoc-process-docstring", _to_restructured_text, priority=400)
