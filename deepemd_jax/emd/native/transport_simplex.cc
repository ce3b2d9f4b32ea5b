#include "transport_simplex.h"

#include <algorithm>
#include <cstring>

namespace deepemd {
namespace {

constexpr int kLanes = 8;         // a row's length is a multiple of this
constexpr int kRowsAtOnce = 4;    // are looked at before a pivot
constexpr double kNever = 1e300;  // the cost of what does not exist
// A reduced cost above -this, times the number of nodes, counts as 0: so much
// may rounding change a potential.
constexpr double kTolerance = 4e-16;

// least[i] = min_j rows[i][j] - offset[j], for `count` rows.
#if defined(__GNUC__)
typedef double Two __attribute__((vector_size(16)));
typedef double Four __attribute__((vector_size(32)));

template <typename Lanes>
inline __attribute__((always_inline)) void LeastOfRowsBy(
    const double* rows, const double* offset, int stride, int count,
    double* least) {
  constexpr int kWidth = sizeof(Lanes) / sizeof(double);
  for (int i = 0; i < count; ++i) {
    const double* row = rows + static_cast<int64_t>(i) * stride;
    Lanes low[2], x, y;
    for (int k = 0; k < 2; ++k) {
      std::memcpy(&x, row + k * kWidth, sizeof x);
      std::memcpy(&y, offset + k * kWidth, sizeof y);
      low[k] = x - y;
    }
    for (int j = 2 * kWidth; j < stride; j += 2 * kWidth) {
      for (int k = 0; k < 2; ++k) {
        std::memcpy(&x, row + j + k * kWidth, sizeof x);
        std::memcpy(&y, offset + j + k * kWidth, sizeof y);
        x -= y;
        low[k] = x < low[k] ? x : low[k];
      }
    }
    low[0] = low[0] < low[1] ? low[0] : low[1];
    double one = low[0][0];
    for (int k = 1; k < kWidth; ++k) one = low[0][k] < one ? low[0][k] : one;
    least[i] = one;
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void LeastOfRowsAvx2(
    const double* rows, const double* offset, int stride, int count,
    double* least) {
  LeastOfRowsBy<Four>(rows, offset, stride, count, least);
}
#endif

void LeastOfRows(const double* rows, const double* offset, int stride,
                 int count, double* least) {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return LeastOfRowsAvx2(rows, offset, stride, count, least);
#endif
  LeastOfRowsBy<Two>(rows, offset, stride, count, least);
}
#else
void LeastOfRows(const double* rows, const double* offset, int stride,
                 int count, double* least) {
  for (int i = 0; i < count; ++i) {
    const double* row = rows + static_cast<int64_t>(i) * stride;
    double low = row[0] - offset[0];
    for (int j = 1; j < stride; ++j) low = std::min(low, row[j] - offset[j]);
    least[i] = low;
  }
}
#endif

// The first j for which row[j] - offset[j] is the least.
int WhereLeast(const double* row, const double* offset, int stride,
               double least) {
  int j = 0;
  while (j < stride - 1 && row[j] - offset[j] != least) ++j;
  return j;
}

}  // namespace

void TransportSimplex::Resize(int n, int m) {
  n_ = n;
  m_ = m;
  stride_ = (m + kLanes - 1) / kLanes * kLanes;
  const int nodes = n + m;
  costs_.resize(static_cast<size_t>(n) * stride_);
  for (int i = 0; i < n; ++i) {
    for (int j = m; j < stride_; ++j) cost_row(i)[j] = kNever;
  }
  a_.resize(n);
  b_.resize(m);
  f_.resize(n);
  g_.assign(stride_, 0.0);
  flow_.resize(nodes);
  for (auto* list : {&parent_, &first_, &next_, &previous_, &depth_}) {
    list->resize(nodes);
  }
  left_a_.resize(n);
  left_b_.resize(m);
  offset_.resize(stride_);
  row_least_.resize(n);
  extra_a_.resize(n);
  extra_b_.resize(m);
  row_sink_.resize(n);
  rows_.resize(n);
  arcs_.resize(2 * static_cast<size_t>(nodes));
  chain_.resize(2 * static_cast<size_t>(nodes));
  order_.resize(nodes);
  open_.resize(nodes);
  start_arcs_.clear();
}

void TransportSimplex::AddStartArc(int i, int j) {
  start_arcs_.push_back(i);
  start_arcs_.push_back(j);
}

int64_t TransportSimplex::Solve(int64_t max_pivots) {
  FirstBasis();
  int64_t pivots = 0;
  for (;;) {
    const int64_t more = Pivot(max_pivots - pivots);
    pivots += more;
    FinishTree();
    // Rounding may have hidden an arc.
    if (more == 0 || pivots >= max_pivots) return pivots;
  }
}

// Sends as much as possible over one arc after another. A source or sink is
// closed when nothing is left of it. Of two that end together only one may close,
// so that the arcs form a tree. Ties are broken as if each source had a trifle
// more, each sink a trifle less, and the root all of these trifles: such a tree
// is strongly feasible.
void TransportSimplex::FirstBasis() {
  const int n = n_, m = m_;
  std::copy(a_.begin(), a_.begin() + n, left_a_.begin());
  std::copy(b_.begin(), b_.begin() + m, left_b_.begin());
  std::fill(extra_a_.begin(), extra_a_.begin() + n, 1);
  std::fill(extra_b_.begin(), extra_b_.begin() + m, -1);
  const int root = static_cast<int>(
      std::max_element(b_.begin(), b_.begin() + m) - b_.begin());
  extra_b_[root] += n + m;
  root_ = n + root;
  std::fill(open_.begin(), open_.begin() + n + m, 1);
  basis_arcs_ = 0;
  open_rows_ = n;
  open_sinks_ = m;
  if (!start_arcs_.empty()) SendOverStartArcs();
  SendOverCheapArcs();
  HangTree();
}

// Returns the node that is closed by it.
inline int TransportSimplex::Send(int i, int j) {
  arcs_[2 * basis_arcs_] = i;
  arcs_[2 * basis_arcs_ + 1] = j;
  ++basis_arcs_;
  const bool close_row =
      open_sinks_ == 1 || left_a_[i] < left_b_[j] ||
      (left_a_[i] == left_b_[j] && extra_a_[i] < extra_b_[j]);
  if (close_row) {
    left_b_[j] -= left_a_[i];
    extra_b_[j] -= extra_a_[i];
    --open_rows_;
  } else {
    left_a_[i] -= left_b_[j];
    extra_a_[i] -= extra_b_[j];
    --open_sinks_;
  }
  const int closed = close_row ? i : n_ + j;
  open_[closed] = 0;
  return closed;
}

// A node that has one arc left sends over it whatever it has. So a plan that
// fits the masses is found again. Where it does not fit, some is left over.
void TransportSimplex::SendOverStartArcs() {
  const int nodes = n_ + m_, arcs = static_cast<int>(start_arcs_.size()) / 2;
  ListArcs(start_arcs_, arcs);
  const std::vector<int32_t>& head = depth_;
  std::vector<int32_t>& degree = first_;  // the arcs to open nodes
  const auto other_end = [&](int place) {
    return place % 2 ? start_arcs_[place - 1] : n_ + start_arcs_[place + 1];
  };
  int end = 0;
  for (int x = 0; x < nodes; ++x) {
    degree[x] = 0;
    for (int k = head[x]; k >= 0; k = chain_[k]) ++degree[x];
    if (degree[x] == 1) order_[end++] = x;
  }
  while (end > 0 && open_rows_ > 1) {
    const int x = order_[--end];
    if (!open_[x] || degree[x] != 1) continue;
    int place = head[x];
    while (!open_[other_end(place)]) place = chain_[place];
    const int arc = place & ~1;
    const int closed = Send(start_arcs_[arc], start_arcs_[arc + 1]);
    for (int k = head[closed]; k >= 0; k = chain_[k]) {
      const int y = other_end(k);
      if (--degree[y] == 1 && open_[y]) order_[end++] = y;
    }
  }
}

// Cheap is what costs little above the least cost of its column.
void TransportSimplex::SendOverCheapArcs() {
  const int n = n_, m = m_;
  int rows = 0;
  std::fill(offset_.begin(), offset_.end(), kNever);
  for (int i = 0; i < n; ++i) {
    if (!open_[i]) continue;
    rows_[rows++] = i;
    const double* row = cost_row(i);
    for (int j = 0; j < stride_; ++j) {
      offset_[j] = row[j] < offset_[j] ? row[j] : offset_[j];
    }
  }
  for (int j = 0; j < stride_; ++j) {
    if (j >= m || !open_[n + j]) offset_[j] = -kNever;
  }
  const auto find_least = [&](int i) {
    LeastOfRows(cost_row(i), offset_.data(), stride_, 1, &row_least_[i]);
    row_sink_[i] =
        WhereLeast(cost_row(i), offset_.data(), stride_, row_least_[i]);
  };
  for (int k = 0; k < rows; ++k) find_least(rows_[k]);
  while (open_rows_ > 1) {
    int at = 0;
    for (int k = 1; k < open_rows_; ++k) {
      if (row_least_[rows_[k]] < row_least_[rows_[at]]) at = k;
    }
    const int i = rows_[at], j = row_sink_[i];
    if (!open_[n + j]) {  // what is left costs as much or more
      find_least(i);
    } else if (Send(i, j) == i) {
      rows_[at] = rows_[open_rows_];
    } else {
      offset_[j] = -kNever;
    }
  }
  for (int j = 0; j < m; ++j) {  // the last row serves all that are open
    if (open_[n + j]) Send(rows_[0], j);
  }
}

// Makes lists of the arcs of each node. An arc has two places: 2 * arc in the
// list of its source, and 2 * arc + 1 in that of its sink. depth_ has the first
// place of each node, and chain_ the one after each place; -1 ends a list.
void TransportSimplex::ListArcs(const std::vector<int32_t>& arcs, int count) {
  std::fill(depth_.begin(), depth_.begin() + n_ + m_, -1);
  for (int place = 0; place < 2 * count; ++place) {
    const int end = place % 2 ? n_ + arcs[place] : arcs[place];
    chain_[place] = depth_[end];
    depth_[end] = place;
  }
}

// Makes the tree of the list of arcs, with its depths, potentials and flows.
void TransportSimplex::HangTree() {
  const int nodes = n_ + m_, root = root_;
  ListArcs(arcs_, nodes - 1);
  // A node's depth is not known before its list is done with.
  const std::vector<int32_t>& head = depth_;
  std::fill(first_.begin(), first_.begin() + nodes, -1);
  parent_[root] = -1;
  next_[root] = previous_[root] = -1;
  g_[root - n_] = 0;
  flow_[root] = 0;
  int end = 0;
  order_[end++] = root;
  for (int k = 0; k < end; ++k) {
    const int x = order_[k];
    int place = head[x];
    depth_[x] = x == root ? 0 : depth_[parent_[x]] + 1;
    for (; place >= 0; place = chain_[place]) {
      const int arc = place / 2, i = arcs_[2 * arc], j = arcs_[2 * arc + 1];
      const int other = place % 2 ? i : n_ + j;
      if (other == parent_[x]) continue;
      Link(other, x);
      const double cost = cost_row(i)[j];
      if (other < n_) {
        f_[i] = cost - g_[j];
      } else {
        g_[j] = cost - f_[i];
      }
      order_[end++] = other;
    }
  }
  // Each node sends up what it and its children have.
  for (int x = 0; x < nodes; ++x) flow_[x] = x < n_ ? a_[x] : -b_[x - n_];
  for (int k = end - 1; k > 0; --k) {
    const int x = order_[k];
    flow_[parent_[x]] += flow_[x];
    const double up = x < n_ ? flow_[x] : -flow_[x];
    flow_[x] = up > 0 ? up : 0;
  }
}

inline void TransportSimplex::Unlink(int x) {
  const int previous = previous_[x], next = next_[x];
  if (previous >= 0) {
    next_[previous] = next;
  } else {
    first_[parent_[x]] = next;
  }
  if (next >= 0) previous_[next] = previous;
}

inline void TransportSimplex::Link(int x, int parent) {
  const int first = first_[parent];
  parent_[x] = parent;
  previous_[x] = -1;
  next_[x] = first;
  if (first >= 0) previous_[first] = x;
  first_[parent] = x;
}

int64_t TransportSimplex::Pivot(int64_t max_pivots) {
  // Rows are looked at in blocks, round and round; the best of a block enters.
  const int block = std::min(n_, kRowsAtOnce);
  const double tolerance = kTolerance * (n_ + m_);
  int start = 0, seen = 0;
  int64_t pivots = 0;
  while (seen < n_) {
    const int count = std::min(block, n_ - start);
    LeastOfRows(cost_row(start), g_.data(), stride_, count, &row_least_[start]);
    double best = -tolerance;
    int i = -1;
    for (int k = start; k < start + count; ++k) {
      const double reduced = row_least_[k] - f_[k];
      if (reduced < best) {
        best = reduced;
        i = k;
      }
    }
    seen += count;
    start += count;
    if (start == n_) start = 0;
    if (i < 0) continue;
    if (pivots == max_pivots) return pivots;
    seen = 0;
    ++pivots;
    Enter(i, WhereLeast(cost_row(i), g_.data(), stride_, row_least_[i]), best);
  }
  return pivots;
}

// Arc (i, j) enters the tree. Of the arcs without flow then, the last one on
// the way around the cycle, from the apex along (i, j), leaves it.
void TransportSimplex::Enter(int i, int j, double reduced_cost) {
  int x = i, y = n_ + j;
  // Only the deeper one can move up. On the way down to i, an arc from a source
  // up loses flow; on the way up from j, an arc down to a sink does.
  double least_i = kNever, least_j = kNever;
  int out_i = -1, out_j = -1;
  while (x != y) {
    if (depth_[x] >= depth_[y]) {
      if (x < n_ && flow_[x] < least_i) {
        least_i = flow_[x];
        out_i = x;
      }
      x = parent_[x];
    } else {
      if (y >= n_ && flow_[y] <= least_j) {
        least_j = flow_[y];
        out_j = y;
      }
      y = parent_[y];
    }
  }
  const int apex = x;
  const bool on_i = least_i < least_j;
  const double moved = on_i ? least_i : least_j;
  if (moved > 0) {
    for (x = i; x != apex; x = parent_[x]) {
      flow_[x] += x < n_ ? -moved : moved;
    }
    for (y = n_ + j; y != apex; y = parent_[y]) {
      flow_[y] += y < n_ ? moved : -moved;
    }
  }
  // The part that was cut off hangs by (i, j) now.
  const int out = on_i ? out_i : out_j;
  const int top = on_i ? i : n_ + j;
  int above = on_i ? n_ + j : i;
  double flow = moved;
  for (int node = top;;) {
    const int old_parent = parent_[node];
    const double old_flow = flow_[node];
    Unlink(node);
    Link(node, above);
    flow_[node] = flow;
    if (node == out) break;
    above = node;
    flow = old_flow;
    node = old_parent;
  }
  const double to_f = on_i ? reduced_cost : -reduced_cost;
  for (int node = top;;) {
    depth_[node] = depth_[parent_[node]] + 1;
    if (node < n_) {
      f_[node] += to_f;
    } else {
      g_[node - n_] -= to_f;
    }
    if (first_[node] >= 0) {
      node = first_[node];
      continue;
    }
    while (node != top && next_[node] < 0) node = parent_[node];
    if (node == top) break;
    node = next_[node];
  }
}

// Computes flows and potentials of the final tree afresh, without the rounding
// of the pivots.
void TransportSimplex::FinishTree() {
  int arc = 0;
  for (int x = 0; x < n_ + m_; ++x) {
    const int parent = parent_[x];
    if (parent < 0) continue;
    arcs_[2 * arc] = x < n_ ? x : parent;
    arcs_[2 * arc + 1] = (x < n_ ? parent : x) - n_;
    ++arc;
  }
  HangTree();
}

}  // namespace deepemd
