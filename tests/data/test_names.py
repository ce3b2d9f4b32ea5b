"""A name is found in any spelling, and keeps the spelling that was given."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepemd_jax.data import names
from deepemd_jax.errors import InputError

# Letters with marks, ligatures, kinds of spaces, and capitals that change
# length ("ß").
LETTERS = "aAbüÜéÉñßﬁ가ą \u00a0\u202f1-_."
TEXT = st.text(LETTERS, min_size=1, max_size=8).filter(str.strip)
SAME = {
  "NFD": lambda name: unicodedata.normalize("NFD", name),
  "NFC": lambda name: unicodedata.normalize("NFC", name),
  "space after": lambda name: f"{name} ",
  "spaces around": lambda name: f" \t{name}\u00a0",
}
ALIKE = {
  "capitals": str.upper,
  "small": str.lower,
  "one space": lambda name: " ".join(name.split()),
  "two spaces": lambda name: name.replace(" ", "  "),
  "NFKC": lambda name: unicodedata.normalize("NFKC", name),
}


@settings(deadline=None, max_examples=60)
@given(TEXT, st.sampled_from(sorted(SAME | ALIKE)))
def test_a_name_is_found_in_any_spelling(name, spelling):
  written = (SAME | ALIKE)[spelling](name)
  assert names.Names([name, "quite another"]).find(written) == name
  assert names.Names([written, "quite another"]).find(name) == written


@settings(deadline=None, max_examples=60)
@given(st.sets(TEXT, min_size=1, max_size=6))
def test_a_name_that_is_there_is_itself(known):
  found = names.Names(sorted(known))
  assert {name: found.find(name) for name in known} == {n: n for n in known}


@settings(deadline=None, max_examples=60)
@given(TEXT, TEXT)
def test_other_letters_are_another_name(one, other):
  if names.alike(one) != names.alike(other):
    assert names.Names([one]).find(other) is None


def test_a_name_that_may_mean_two_is_refused():
  known = names.Names(["Cat", "cat", "dog"])
  assert known.find("cat ") == "cat" and known.find("dog") == "dog"
  with pytest.raises(InputError, match="'CAT' may mean 'Cat' or 'cat'; write"):
    known.find("CAT")


def test_names_that_look_the_same_are_refused():
  names.refuse_twins(["Cat", "cat", "dog"], "classes")
  with pytest.raises(InputError, match=r"'Mu\\u0308ller' and 'M\\xfcller'"):
    names.refuse_twins(["Mu\u0308ller", "M\xfcller"], "classes")


@pytest.mark.parametrize("kind", ["a/b", "ä/b c.png", "a /b"])
def test_paths_are_compared_part_by_part(kind):
  assert names.same(kind.replace("/", " / ")) == names.same(kind)
