"""Tests of the page in a real browser."""

import json

import chromium
import pytest
from forms import BLUE, RED, TEXT, TRICK, png, serving
from PIL import Image

from deepemd_jax.demo import server


@pytest.fixture(scope="module")
def tab(port, tmp_path_factory):
  if chromium.path() is None:
    pytest.skip("no Chromium or Chrome here (apt-get install chromium)")
  with chromium.started(tmp_path_factory.mktemp("chromium")) as found:
    found.port = port
    yield found


@pytest.fixture
def page(tab):
  """The opened page, which must not load anything from other addresses."""
  tab.problems.clear()
  tab.addresses.clear()
  tab.size(1280, 900)
  tab.open(f"http://127.0.0.1:{tab.port}/")
  tab.wait("document.querySelectorAll('.card').length === 3")
  yield tab
  assert [p for p in tab.problems if "Uncaught" in p or "dialog" in p] == []
  here = (f"http://127.0.0.1:{tab.port}/", "blob:", "data:")
  assert [a for a in tab.addresses if not a.startswith(here)] == []


RESULT = "!document.getElementById('result').hidden"

ERROR = "document.getElementById('error').textContent !== ''"


def by_id(name):
  return f"document.getElementById('{name}')"


def all_of(selector):
  return f"document.querySelectorAll({json.dumps(selector)})"


def text(page, selector):
  return page.evaluate(f"document.querySelector('{selector}').textContent")


def colors(file) -> int:
  with Image.open(file) as image:
    return len(set(image.convert("RGB").get_flattened_data()))


# The contributions in the table, and their sum.
SUMS = (
  f"[...{all_of('#pairs tr, #sums tr')}].map(r => "
  "parseFloat(r.cells[r.cells.length - 2].textContent.replace('−', '-')))"
)


def check_sums(page):
  """Checks that the lines add up, the first ten and all; returns the logit."""
  *parts, total = page.evaluate(SUMS)
  assert sum(parts) == pytest.approx(total, abs=0.06)
  assert page.evaluate(all_of("#match image") + ".length") == 4
  assert page.evaluate(all_of("#match .flow") + ".length") == 2 * min(
    8, len(parts)
  )
  assert page.evaluate(all_of("#pairs tr") + ".length") == 10
  page.click(by_id("all"))
  *every, again = page.evaluate(SUMS)
  assert len(every) > 11 and again == total
  assert sum(every) == pytest.approx(total, abs=0.005 * len(every) + 0.005)
  assert every[:10] == parts[:10]
  return total


def test_click_through(page, tmp_path):
  """An example is classified; the matches and sums of two classes are shown."""
  page.screenshot(tmp_path / "before.png")
  page.click(all_of("#examples button") + "[0]")
  page.wait(all_of("#classes .card") + ".length === 5")
  loaded = f"[...{all_of('.thumbs img')}].every(i => i.naturalWidth === 224)"
  page.wait(f"{all_of('.thumbs img')}.length === 6 && {loaded}")
  # This server takes four classes. Remove one that is not the query's.
  page.click(by_id("classify"))
  page.wait(ERROR)
  assert "5 classes; at most 4" in text(page, "#error")
  page.click(all_of("#classes .card .name .remove") + "[0]")
  page.wait(all_of("#classes .card") + ".length === 4")
  page.click(by_id("classify"))
  page.wait(RESULT)
  assert page.evaluate(by_id("working") + ".hidden")
  shares = page.evaluate(
    f"[...{all_of('#scores .score .n:nth-of-type(2)')}]"
    ".map(e => parseFloat(e.textContent))"
  )
  assert len(shares) == 4 and sum(shares) == pytest.approx(100, abs=0.3)
  verdict = text(page, "#verdict")
  assert f"{max(shares):.1f} %" in verdict
  assert text(page, "#verdict b") == text(page, ".score:has(:checked) b")

  total = check_sums(page)
  page.hover(all_of("#pairs tr") + "[1]")
  page.wait(all_of("#match .lit rect") + ".length === 4")

  other = page.evaluate(
    f"[...{all_of('#scores input')}].findIndex(i => !i.checked)"
  )
  page.click(all_of("#scores .score") + f"[{other}]")
  page.wait(
    f"{by_id('matched')}.textContent === "
    f"{all_of('#scores b')}[{other}].textContent"
  )
  *parts, changed = page.evaluate(SUMS)
  assert sum(parts) == pytest.approx(changed, abs=0.06) and changed != total

  page.screenshot(tmp_path / "after.png")
  assert colors(tmp_path / "after.png") > 2000
  assert colors(tmp_path / "after.png") > 4 * colors(tmp_path / "before.png")
  page.size(390, 844, phone=True)
  assert page.evaluate("document.documentElement.scrollWidth") <= 390
  page.screenshot(tmp_path / "phone.png")
  # The console has only one line, which is the refusal above.
  assert len(page.problems) == 1 and "413" in page.problems[0]


def test_own_files(page, tmp_path):
  """Files are dropped and removed; errors are shown at the right place."""
  for name, content in (
    ("red.png", png(RED, 1)),
    ("blue.png", png(BLUE, 2)),
    ("query.png", png(RED, 3)),
    ("text.png", TEXT),
    ("large.png", bytes(600_001)),
    ("<img src=x onerror=alert(2)>.png", png(BLUE, 4)),
  ):
    (tmp_path / name).write_bytes(content)
  cards = all_of("#classes .card")
  page.click(f"{cards}[0].querySelector('input[type=text]')")
  page.evaluate("document.activeElement.select()")
  page.write(TRICK)
  page.drop(f"{cards}[0]", [tmp_path / "red.png", tmp_path / "text.png"])
  page.drop(f"{cards}[1]", [tmp_path / "blue.png", tmp_path / "large.png"])
  page.wait(all_of(".thumbs li") + ".length === 3")
  message = f"{cards}[1].querySelector('.error').textContent"
  assert page.evaluate(message) == (
    "“large.png” has 0.6 MiB; at most 0.6 are allowed."
  )
  page.drop("document.querySelector('#query .card')", [tmp_path])
  assert text(page, "#query .error") == "Drop images, not a folder."
  # A file that is dropped outside of the cards does nothing.
  page.drop("document.querySelector('h1')", [tmp_path / "red.png"])

  page.click(by_id("classify"))
  page.wait(ERROR)
  assert text(page, "#query .error") == "Add a query."
  page.drop("document.querySelector('#query .card')", [tmp_path / "query.png"])
  page.wait(all_of("#query li") + ".length === 1")
  assert text(page, "#error") == text(page, "#query .error") == ""
  page.click(by_id("classify"))
  page.wait(ERROR)
  assert text(page, "#classes .error") == (
    "“text.png” cannot be read: a drawing, not a photograph; save it as JPEG "
    "or PNG."
  )
  assert page.evaluate(all_of("li.bad .file") + "[0].textContent") == "text.png"
  page.click("document.querySelector('li.bad .remove')")
  page.drop(f"{cards}[1]", [tmp_path / "<img src=x onerror=alert(2)>.png"])
  page.wait(all_of(".thumbs li") + ".length === 4")
  page.click(by_id("classify"))
  page.wait(RESULT)
  assert text(page, "#verdict b") == TRICK == text(page, "#matched")
  assert page.evaluate("document.scripts.length") == 1
  assert page.evaluate(by_id("stale") + ".hidden")
  page.click("document.querySelector('#query .remove')")
  assert not page.evaluate(by_id("stale") + ".hidden")


def test_keys_alone(page):
  """Tab and Enter reach the example and the button; Tab highlights pairs."""

  def focus():
    page.press("Tab", 9)
    return page.evaluate("document.activeElement.textContent.trim()")

  assert focus() == "photographs"
  page.press("Enter", 13)
  page.wait(all_of("#classes .card") + ".length === 5")
  page.evaluate(all_of(".name .remove") + "[4].focus()")
  page.press("Enter", 13)
  for _ in range(40):
    if focus() == "Classify":
      break
  page.press("Enter", 13)
  page.wait(RESULT)
  # The focus is on the result. Next are the chosen class and the first pair.
  assert page.evaluate("document.activeElement.id") == "result"
  focus()
  chosen = page.evaluate("document.activeElement.checked")
  focus()
  assert chosen and page.evaluate("document.activeElement.tagName") == "TR"
  assert page.evaluate(all_of(".lit rect") + ".length") == 4


@pytest.mark.soak
def test_canceled(page, demo):
  page.click(all_of("#examples button") + "[0]")
  page.wait(all_of("#classes .card") + ".length === 5")
  page.click(all_of("#classes .card .name .remove") + "[4]")
  with demo.turn:
    page.click(by_id("classify"))
    page.wait(f"!{by_id('working')}.hidden")
    assert page.evaluate(by_id("classify") + ".disabled")
    page.click(by_id("cancel"))
    page.wait("document.getElementById('status').textContent === 'Canceled.'")
  assert page.evaluate(by_id("result") + ".hidden")
  page.click(by_id("classify"))
  page.wait(RESULT)


@pytest.mark.soak
def test_a_server_that_ended(page, run):
  with serving(server.Demo(run)) as port:
    page.open(f"http://127.0.0.1:{port}/")
    page.wait("document.querySelectorAll('.card').length === 3")
  page.click(by_id("classify"))
  page.wait(ERROR)
  assert "does not answer" in text(page, "#error")
  page.addresses.clear()
