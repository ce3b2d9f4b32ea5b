"""Pictures show the given values."""

import dataclasses
import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from deepemd_jax.errors import InputError
from deepemd_jax.evaluation import plots
from deepemd_jax.models import nodes


def pixels(figure) -> np.ndarray:
  file = io.BytesIO()
  figure.savefig(file, format="png")
  return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture
def pair():
  rng = np.random.default_rng(0)
  boxes = nodes.cell_boxes(4, 4, 64)
  return plots.MatchedPair(
    support=rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
    query=rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
    support_boxes=boxes,
    query_boxes=boxes,
    support_weights=rng.random(16),
    query_weights=rng.random(16),
    similarity=rng.uniform(-0.2, 1, (16, 16)),
    flow=np.roll(np.eye(16), 3, axis=1),
    title="greek_small_alpha (right), logit 9.1",
  )


def test_a_flow_is_a_line_between_the_two_boxes(pair):
  figure = plots.matched_regions([pair, pair], lines=5)
  lines = [a for a in figure.artists if hasattr(a, "xy1")]
  assert len(lines) == 10
  strongest = np.argsort(pair.flow, axis=None)[::-1][0]
  i, j = np.unravel_index(strongest, pair.flow.shape)
  center = lambda box: ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)  # noqa: E731
  assert lines[0].xy1 == center(pair.support_boxes[j])
  assert lines[0].xy2 == center(pair.query_boxes[i])
  assert pixels(figure).std() > 10


def test_lines_are_as_thick_as_the_flow_and_colored_by_similarity(pair):
  rng = np.random.default_rng(1)
  flow = rng.dirichlet(np.ones(256)).reshape(16, 16)
  flow[3, 5] = 0.9 * flow.max()
  pair = dataclasses.replace(pair, flow=flow)
  figure = plots.matched_regions([pair], lines=6)
  strongest = np.argsort(flow, axis=None)[::-1][:6]
  widths = [line.get_linewidth() for line in figure.artists]
  assert np.all(np.diff(widths) < 0)
  # Widths are a linear function of the flows.
  slope = np.diff(widths) / np.diff(flow.ravel()[strongest])
  np.testing.assert_allclose(slope, slope[0])
  colors = colormaps["viridis"](
    (pair.similarity.ravel()[strongest] + 0.2) / 1.2
  )
  shown = [line.get_edgecolor() for line in figure.artists]
  np.testing.assert_allclose(shown, colors, atol=1 / 255)


def test_overlapping_boxes_of_any_layout(pair):
  rng = np.random.default_rng(2)
  corners = rng.uniform(0, 40, (9, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(2, 24, (9, 2))], 1)
  sampled = dataclasses.replace(
    pair,
    query_boxes=boxes,
    query_weights=rng.random(9),
    similarity=pair.similarity[:9],
    flow=pair.flow[:9],
  )
  figure = plots.matched_regions([sampled])
  support, query = figure.axes[1], figure.axes[2]
  assert (len(support.lines), len(query.lines)) == (16, 9)
  for line, (left, top, right, bottom) in zip(query.lines, boxes, strict=True):
    assert set(line.get_xdata()) == {left, right}
    assert set(line.get_ydata()) == {top, bottom}
  assert query.get_xlim() == (0, 64) and query.get_ylim() == (64, 0)


def test_mirrored_crops_say_so(pair):
  mirrored = np.arange(16) == 5
  figure = plots.matched_regions(
    [dataclasses.replace(pair, query_mirrored=mirrored), pair]
  )
  plain, marked = figure.axes[1], figure.axes[2]
  others = [*figure.axes[5:7], plain]
  assert not any(axis.texts or axis.patches for axis in others)
  (text,), (edge,) = marked.texts, marked.patches
  left, top, right, bottom = pair.query_boxes[5]
  assert text.get_text() == "mirrored"
  assert text.get_position() == ((left + right) / 2, top)
  assert edge.get_bbox().extents.tolist() == [left, top, right, bottom]
  assert edge.get_linestyle() == "--"
  assert (pixels(figure) == (230, 159, 0)).all(-1).sum() > 100


def test_known_contributions_choose_the_lines(pair):
  contributions = np.zeros((16, 16))
  contributions[4, 9], contributions[2, 2] = 3.0, 1.0
  pair = dataclasses.replace(
    pair, flow=np.full((16, 16), 0.1), contributions=contributions
  )
  figure = plots.matched_regions([pair], lines=2)
  center = lambda box: ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)  # noqa: E731
  assert [line.xy2 for line in figure.artists] == [
    center(pair.query_boxes[4]),
    center(pair.query_boxes[2]),
  ]


def test_images_need_not_be_square_nor_titles_tame(pair):
  wide = np.full((30, 90, 3), 200, np.uint8)
  pair = dataclasses.replace(
    pair, query=wide, query_boxes=nodes.cell_boxes(4, 4, 30), title="$x^$ & _"
  )
  figure = plots.matched_regions([pair])
  assert pixels(figure).std() > 10
  assert figure.axes[2].get_xlim() == (0, 90)
  assert figure.axes[2].get_ylim() == (30, 0)


def test_weights_darken_where_there_is_no_mass(pair):
  weights = np.zeros(16)
  weights[5] = 1.0
  figure = plots.matched_regions(
    [dataclasses.replace(pair, support_weights=weights)]
  )
  shown = np.asarray(figure.axes[1].images[0].get_array())
  np.testing.assert_array_equal(shown[16:32, 16:32], pair.support[16:32, 16:32])
  assert shown[:16].max() <= 0.12 * 255


def test_reliability_leaves_out_empty_bins():
  nan = float("nan")
  figure = plots.reliability(
    np.array([nan, 0.4, 0.9]), np.array([nan, 0.5, 1.0]), np.array([0, 2, 6])
  )
  above, below = figure.axes
  assert above.lines[1].get_xydata().tolist() == [[0.4, 0.5], [0.9, 1.0]]
  assert [bar.get_height() for bar in below.patches] == [0, 2, 6]
  assert pixels(figure).std() > 1


def test_a_page_of_pairs_is_small_enough_to_ship(pair, tmp_path):
  y, x = np.mgrid[:84, :84] / 83
  smooth = np.stack([x, y, 1 - x * y], -1)
  image = (255 * smooth).astype(np.uint8)
  page = [dataclasses.replace(pair, support=image, query=image)] * 4
  plots.save(plots.matched_regions(page), tmp_path / "page.png")
  assert (tmp_path / "page.png").stat().st_size < 300_000


def test_saving_leaves_no_scratch_file(tmp_path):
  figure = plots.new_figure(2, 2)
  plots.save(figure, tmp_path / "deep" / "curves.png")
  assert [p.name for p in (tmp_path / "deep").iterdir()] == ["curves.png"]


def test_a_picture_is_what_its_name_says(tmp_path):
  figure = plots.new_figure(2, 2)
  with pytest.raises(InputError, match="must end in .png; use .*curves.png"):
    plots.save(figure, tmp_path / "deep" / "curves.jpg")
  assert not list(tmp_path.iterdir())
