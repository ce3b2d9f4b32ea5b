"""`search` lists the most similar images first."""

import shutil

from commands import assert_refused


def test_search(call, folder):
  """The query is not found; another copy of it is the most similar image."""
  shutil.copy("query/red/1.png", "query/copy.png")
  code, out, errors = call(
    "search", "--gallery=query", "--query=query/red/../red/1.png", "--top=2"
  )
  assert code == 0 and errors == ""
  header, *lines = out.splitlines()
  assert header.split() == ["rank", "matched", "pooled", "image"]
  found = [line.split() for line in lines]
  assert found[0] == ["1", "1.000", "1.000", "query/copy.png"]
  assert found[1][0] == "2" and found[1][3] == "query/red/0.png"
  assert float(found[1][1]) <= 1 and len(found) == 2


def test_search_takes_the_global_top(call, folder):
  """The result has the K images that are most similar by pooled nodes."""
  _, out, _ = call("search", "--gallery=.", "--query=query/red/1.png")
  found = [line.split() for line in out.splitlines()[1:]]
  assert len(found) == 10
  values = [float(row[1]) for row in found]
  assert values == sorted(values, reverse=True)
  _, out, _ = call(
    "search", "--gallery=.", "--query=query/red/1.png", "--top=11"
  )
  everything = [line.split() for line in out.splitlines()[1:]]
  best = sorted(everything, key=lambda row: -float(row[2]))[:10]
  assert {row[3] for row in best} == {row[3] for row in found}


def test_what_a_place_has_in_common_is_taken_out(call, folder):
  shutil.copy("query/red/1.png", "query/copy.png")
  usual = ("--gallery=query", "--query=query/red/1.png", "--top=6")
  _, plain, _ = call("search", *usual)
  code, out, errors = call("search", *usual, "--center=query")
  assert code == 0 and errors == ""
  plain, found = ([x.split() for x in t.splitlines()[1:]] for t in (plain, out))
  assert {row[3] for row in found} == {row[3] for row in plain}
  assert found[0] == ["1", "1.000", "1.000", "query/copy.png"]
  # The similarities of the others differ more.
  assert min(float(row[2]) for row in found) < min(
    float(row[2]) for row in plain
  )
  (folder / "query" / "bad.png").write_bytes(b"x")
  others = ("--gallery=support", usual[1])
  refused = call("search", *others, "--center=query")
  assert_refused(refused, "1 of 8 images cannot be read")
  code, _, errors = call("search", *others, "--center=query", "--skip-bad")
  assert code == 0
  left_out = "left out for centering 'query/bad.png': not an image\n"
  assert errors == left_out
  wanted = ("--support=support", "--query=query", "--out=p.csv")
  code, _, errors = call("classify", *wanted, "--center=query", "--skip-bad")
  assert code == 0
  assert left_out in errors
  assert errors.endswith("left out 'query/bad.png': not an image\n")
  assert_refused(call("search", *usual, "--center=x"), "no image folder 'x'")


def test_search_mistakes(call, folder):
  usual = ("--gallery=query", "--query=query/red/1.png")
  assert_refused(call("search", *usual, "--top=0"), "--top is 0")
  assert_refused(call("search", usual[0], "--query=x.png"), "no image 'x.png'")
  assert_refused(call("search", "--gallery=x", usual[1]), "no image folder 'x'")
  assert_refused(call("search", usual[0], "--query=query"), "not a file")
  (folder / "query" / "bad.png").write_bytes(b"x")
  assert_refused(call("search", *usual), "1 of 6 images cannot be read")
  code, out, errors = call("search", *usual, "--skip-bad")
  assert code == 0 and errors == "left out 'query/bad.png': not an image\n"
  assert out.count("\n") == 6
  alone = ("--gallery=query/red", "--query=query/red/1.png")
  (folder / "query" / "red" / "0.png").unlink()
  assert_refused(call("search", *alone), "no other image than the query")
