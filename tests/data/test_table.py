"""Tables are read as common programs write them, or refused with a reason."""

import codecs
import csv
import io
import os
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepemd_jax.data import table
from deepemd_jax.errors import InputError

COLUMNS = ("filename", "label", "split")
# Characters that all of these alphabets have, with separators, quotes and line
# ends.
FIELD = st.text("aBüé1 ,;|\t\"'\n/\\=", min_size=1, max_size=12).filter(
  lambda text: text.strip()
)
ALPHABETS = {
  "utf-8": b"",
  "utf-8-sig": b"",
  "utf-16-le": codecs.BOM_UTF16_LE,
  "utf-16-be": codecs.BOM_UTF16_BE,
  "cp1252": b"",
}
BAD_HEADER = "needs a header with filename,label,split or label,split; "


def read(content, *choices):
  """Reads a table from bytes."""
  with tempfile.NamedTemporaryFile(suffix=".csv") as file:
    file.write(content if isinstance(content, bytes) else content.encode())
    file.flush()
    return table.read(file.name, *(choices or (COLUMNS, COLUMNS[1:])))


def fields(content):
  return [row.fields for row in read(content)]


@settings(deadline=None, max_examples=60)
@given(
  rows=st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=4),
  order=st.permutations(COLUMNS),
  separator=st.sampled_from(",;\t|"),
  named=st.booleans(),
  alphabet=st.sampled_from(sorted(ALPHABETS)),
  end=st.sampled_from(["\n", "\r\n"]),
  quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
  empty=st.booleans(),
)
def test_any_program_s_table_is_read(
  rows, order, separator, named, alphabet, end, quoting, empty
):
  text = io.StringIO()
  writer = csv.writer(
    text, delimiter=separator, lineterminator=end, quoting=quoting
  )
  if named:
    text.write(f"sep={separator}{end}")
  writer.writerow([f" {name.capitalize()} " for name in order])
  for row in rows:
    named_row = dict(zip(COLUMNS, row, strict=True))
    writer.writerow([named_row[name] for name in order])
    if empty:
      writer.writerow(["", " ", ""])
  content = ALPHABETS[alphabet] + text.getvalue().encode(alphabet)
  expected = [
    dict(zip(COLUMNS, (field.strip() for field in row), strict=True))
    for row in rows
  ]
  assert fields(content) == expected


@pytest.mark.parametrize(
  "content",
  [
    "label;split;;\na;train;;\n;;;\n",
    "\nlabel,split\n\na,train\n",
    "label,split\ra,train\r",
    "label,split,note\na,train,b;c\n",
    "note,label,split\n" + "x" * 200_000 + ",a,train\n",
  ],
)
def test_more_than_is_needed_does_no_harm(content):
  assert fields(content) == [{"label": "a", "split": "train"}]


def test_rows_have_the_lines_where_they_end():
  rows = read('sep=;\nlabel;split\n"a\nb";train\n\nc;val\n')
  assert [row.line for row in rows] == [4, 6]


def test_a_limit_of_somebody_else_stays():
  before = csv.field_size_limit()
  read("label,split\n" + "x" * 200_000 + ",train\n")
  assert csv.field_size_limit() == before


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("", BAD_HEADER + "it is empty"),
    ("a,train\nb,test\n", BAD_HEADER + "its first line is 'a,train'"),
    ("label:split\na:train\n", BAD_HEADER + "its first line is 'label:split'"),
    ("sep=;\nlabel,split\na,train\n", BAD_HEADER + "its first"),
    ("label,split\n", "no rows below its header"),
    ("label,Label,split\na,b,train\n", "has 2 columns 'label'; keep one"),
    ("label,split\na,train,x\n", "line 2: 3 fields, but the header has 2"),
    ("label,split\na\n", "line 2: split is empty"),
    ('label,split\n"a,train\nb,test\n', "line 2: .* quotation mark too few"),
    ('label,split\nb,test\n"a"b,train\n', "line 3: .* quotation mark"),
    (b"PK\3\4" + bytes(99), "it is a workbook; save it as CSV"),
    (bytes(range(256)), "it is not text in UTF-8"),
    (b"label,split\na\0,train\n", "it is not text in UTF-8"),
    (codecs.BOM_UTF16_LE + b"odd", "it is not text in UTF-8"),
  ],
)
def test_what_is_ambiguous_is_one_line(content, message):
  with pytest.raises(InputError, match=message) as refused:
    read(content)
  assert "\n" not in str(refused.value)


def test_a_guess_is_told_once(capfd):
  with tempfile.TemporaryDirectory() as place:
    path = os.path.join(place, "a.csv")
    with open(path, "w", encoding="cp1252") as file:
      file.write("label,split\nMüller,train\n")
    for _ in range(2):
      assert table.read(path, ("label",))[0].fields == {"label": "Müller"}
  said = capfd.readouterr().err
  assert said.count("\n") == 1 and "read as Windows-1252" in said


def test_no_pipe_is_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe.csv")
  for name, why in (("pipe.csv", "not a regular file"), ("no.csv", "No such")):
    with pytest.raises(InputError, match=f"cannot read the CSV .*{why}"):
      table.read(tmp_path / name, COLUMNS)
