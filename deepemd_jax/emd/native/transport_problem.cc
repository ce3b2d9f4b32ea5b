#include "transport_problem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace deepemd {
namespace {

// Totals that differ by at most this share count as equal, as in problem.py.
constexpr double kBalanced = 1e-5;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A plan has converged if its gap, without the allowance for rounding, is at
// most this share of what it pays, as in certificate.py.
template <typename T>
constexpr double kClose = std::is_same_v<T, float> ? 2e-5 : 1e-9;

// Sums of a flow are as exact as so many roundings of a node's mass.
constexpr double kRoundings = 4;

template <typename T>
void WriteNan(int n, int m, Plan<T> plan) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  std::fill(plan.flow, plan.flow + static_cast<int64_t>(n) * m, nan);
  std::fill(plan.f, plan.f + n, nan);
  std::fill(plan.g, plan.g + m, nan);
  *plan.gap = *plan.residual = nan;
  *plan.converged = false;
}

// The total; NaN if a mass is negative or NaN.
template <typename T>
double Total(const T* masses, int count) {
  double total = 0;
  for (int i = 0; i < count; ++i) {
    if (!(masses[i] >= 0)) return std::numeric_limits<double>::quiet_NaN();
    total += masses[i];
  }
  return total;
}

}  // namespace

template <typename T>
void TransportProblem::Solve(const T* cost, const T* a, const T* b,
                             const T* start, int n, int m, int64_t max_pivots,
                             Plan<T> plan) {
  n_ = n;
  m_ = m;
  *plan.steps = 0;
  if (!Prepare(cost, a, b)) {
    WriteNan(n, m, plan);
    return;
  }
  const int64_t pivots = RunSimplex(cost, start, max_pivots);
  *plan.steps = static_cast<int32_t>(
      std::min<int64_t>(pivots, std::numeric_limits<int32_t>::max()));
  CompletePotentials(cost, pivots < max_pivots);
  if (!WritePlan(cost, plan)) WriteNan(n, m, plan);
}

// Finds the units, balances the masses, and finds the nodes that have any.
// Returns false for a problem without meaning.
template <typename T>
bool TransportProblem::Prepare(const T* cost, const T* a, const T* b) {
  const double total_a = Total(a, n_), total_b = Total(b, m_);
  if (!std::isfinite(total_a + total_b) || !(std::min(total_a, total_b) > 0)) {
    return false;
  }
  const T infinity = std::numeric_limits<T>::infinity();
  const int64_t size = static_cast<int64_t>(n_) * m_;
  T low = infinity, high = -infinity, smallest = infinity;
  bool bad = false;
  forbidden_ = false;
  for (int64_t k = 0; k < size; ++k) {
    const T x = cost[k];
    const bool finite = x < infinity;
    low = x < low ? x : low;
    high = finite && x > high ? x : high;
    forbidden_ |= x == infinity;
    const T size = std::abs(x);
    smallest = size > 0 && size < smallest ? size : smallest;
    bad |= !finite && !(x == infinity);
  }
  low_ = low;
  range_ = static_cast<double>(high) - low_;
  if (bad || !std::isfinite(range_)) return false;
  smallest_ = smallest < infinity ? smallest : 0;
  // Nor can a float32 cost or potential be larger than float32 has it.
  if (!std::isfinite(static_cast<T>(range_))) return false;
  // A subnormal range has no inverse.
  constant_ = range_ < std::numeric_limits<double>::min();
  if (constant_) range_ = 1;
  // More than all arcs of a cycle cost: a forbidden pair is used only if there
  // is no other way.
  if (forbidden_) range_ *= n_ + m_;
  if (!std::isfinite(range_)) return false;
  capped_ = forbidden_;

  const bool balanced =
      std::abs(total_a - total_b) <= kBalanced * std::max(total_a, total_b);
  const double to_b = balanced ? total_a / total_b : 1;
  moved_ = balanced ? total_a : std::min(total_a, total_b);
  // In units of what moves. A node that has more than all that moves may as
  // well have twice that; else it would drown the others in its rounding errors.
  double surplus = 0;
  a_.resize(n_ + 1);
  b_.resize(m_ + 1);
  for (int i = 0; i < n_; ++i) {
    a_[i] = std::min(a[i] / moved_, 2.0);
    surplus += a_[i];
  }
  for (int j = 0; j < m_; ++j) {
    b_[j] = std::min(b[j] / moved_ * to_b, 2.0);
    surplus -= b_[j];
  }
  a_[n_] = balanced ? 0 : std::max(-surplus, 0.0);
  b_[m_] = balanced ? 0 : std::max(surplus, 0.0);
  nothing_ = 4e-16 * (n_ + m_) * (1 + std::abs(surplus));
  rows_.clear();
  columns_.clear();
  for (int i = 0; i <= n_; ++i) {
    if (a_[i] > 0) rows_.push_back(i);
  }
  for (int j = 0; j <= m_; ++j) {
    if (b_[j] > 0) columns_.push_back(j);
  }
  return true;
}

template <typename T>
void TransportProblem::FillSimplex(const T* cost) {
  const int n = static_cast<int>(rows_.size());
  const int m = static_cast<int>(columns_.size());
  simplex_.Resize(n, m);
  const bool plain = m == m_ && columns_.back() == m - 1 && !capped_;
  const double scale = 1 / range_;
  for (int i = 0; i < n; ++i) {
    double* row = simplex_.cost_row(i);
    if (plain && rows_[i] < n_) {
      const T* given = cost + static_cast<int64_t>(rows_[i]) * m;
      for (int j = 0; j < m; ++j) row[j] = (given[j] - low_) * scale;
    } else {
      for (int j = 0; j < m; ++j) row[j] = Scaled(cost, rows_[i], columns_[j]);
    }
    simplex_.a()[i] = a_[rows_[i]];
  }
  for (int j = 0; j < m; ++j) simplex_.b()[j] = b_[columns_[j]];
}

// Hands on the pairs that a flow uses. The plan of a simplex uses one pair fewer
// than there are nodes; any other flow is of no help.
template <typename T>
void TransportProblem::AddStart(const T* start) {
  const int n = static_cast<int>(rows_.size());
  const int m = static_cast<int>(columns_.size());
  int room = n + m - 1;
  for (int i = 0; i < n && rows_[i] < n_; ++i) {
    const T* row = start + static_cast<int64_t>(rows_[i]) * m_;
    for (int j = 0; j < m && columns_[j] < m_; ++j) {
      if (!(row[columns_[j]] > 0)) continue;
      if (--room < 0) return;
      simplex_.AddStartArc(i, j);
    }
  }
}

// Returns the number of pivots; max_pivots if that was not enough.
template <typename T>
int64_t TransportProblem::RunSimplex(const T* cost, const T* start,
                                     int64_t max_pivots) {
  int64_t pivots = 0;
  for (;;) {
    FillSimplex(cost);
    if (start) AddStart(start);
    pivots += simplex_.Solve(max_pivots - pivots);
    if (pivots >= max_pivots) return max_pivots;
    double used = 0;
    simplex_.VisitFlows([&](int row, int column, double flow) {
      const int i = rows_[row], j = columns_[column];
      if (i < n_ && j < m_ && !IsRounding(i, j, flow)) {
        used = std::max(used, simplex_.cost_row(row)[column]);
      }
    });
    // Once there is a plan, what costs more than all arcs of a cycle of it is
    // out of the question. Where that is nearly all of the range, it is put on
    // a par, so that the digits of the small costs count.
    const double enough = used * (n_ + m_);
    if (used == 0 || enough > 1e-4) return pivots;
    range_ *= enough;
    capped_ = true;
  }
}

// Sets the potentials of all nodes. They are feasible, whatever the simplex
// has; optimal says that its own are.
template <typename T>
void TransportProblem::CompletePotentials(const T* cost, bool optimal) {
  f_.resize(n_ + 1);
  g_.resize(m_ + 1);
  for (size_t k = 0; k < rows_.size(); ++k) f_[rows_[k]] = simplex_.f()[k];
  for (size_t k = 0; k < columns_.size(); ++k) {
    const int j = columns_[k];
    g_[j] = simplex_.g()[k];
    if (optimal) continue;
    for (int i : rows_) g_[j] = std::min(g_[j], Scaled(cost, i, j) - f_[i]);
  }
  // Nodes without mass get the potential that they would have with a little.
  for (int i = 0; i < n_; ++i) {
    if (a_[i] > 0) continue;
    f_[i] = kInfinity;
    for (int j : columns_) f_[i] = std::min(f_[i], Scaled(cost, i, j) - g_[j]);
  }
  for (int j = 0; j < m_; ++j) {
    if (b_[j] > 0) continue;
    g_[j] = a_[n_] > 0 ? -f_[n_] : kInfinity;
    for (int i = 0; i < n_; ++i) {
      g_[j] = std::min(g_[j], Scaled(cost, i, j) - f_[i]);
    }
  }
}

// Returns false if forbidden pairs are used.
template <typename T>
bool TransportProblem::WritePlan(const T* cost, Plan<T> plan) {
  const double epsilon = std::numeric_limits<T>::epsilon();
  const bool dummy_a = a_[n_] > 0, dummy_b = b_[m_] > 0;
  // The masses are as exact as T is.
  const double inexact = std::min((n_ + m_) * epsilon, 1e-3);
  double gap = 0, paid = 0;
  bool possible = true;
  std::fill(plan.flow, plan.flow + static_cast<int64_t>(n_) * m_, T(0));
  simplex_.VisitFlows([&](int row, int column, double flow) {
    const int i = rows_[row], j = columns_[column];
    const double slack = Uncapped(cost, i, j) - f_[i] - g_[j];
    if (slack == kInfinity) {
      possible &= flow <= inexact * std::min(a_[i], b_[j]);
      return;
    }
    if (capped_ && slack > 1e-9 && IsRounding(i, j, flow)) return;
    gap += flow * std::max(slack, 0.0);
    if (i < n_ && j < m_) {
      const int64_t cell = static_cast<int64_t>(i) * m_ + j;
      plan.flow[cell] = static_cast<T>(flow * moved_);
      paid += flow * std::abs(static_cast<double>(cost[cell]));
    }
  });
  if (!possible) return false;

  // Potentials are known up to a constant. A dummy's is 0; without a dummy,
  // both sides have the same part in the value.
  double to_f = 0;
  if (dummy_a) to_f = -f_[n_];
  if (dummy_b) to_f = g_[m_];
  // What the gap is compared with. A plan that pays nothing is measured by the
  // smallest cost that is not 0.
  const double scale = std::max(paid, smallest_);
  // A wrong sum counts with its price in the potentials, and with what it costs
  // to put it right, which is about what others pay. A rounding of the flow is
  // nobody's fault; it counts as such. The side that has a dummy's rest may
  // have less than its mass.
  double rounding = paid;
  const auto lack = [&](double wrong, double mass, double potential) {
    const double price = std::abs(potential) * range_ + scale;
    rounding += mass * price;
    return std::max(wrong - kRoundings * epsilon * mass, 0.0) * price / range_;
  };
  double residual = 0, even = 0;
  sums_.assign(m_, 0.0);
  for (int i = 0; i < n_; ++i) {
    const T* row = plan.flow + static_cast<int64_t>(i) * m_;
    double sum = 0;
    for (int j = 0; j < m_; ++j) {
      sum += row[j];
      sums_[j] += row[j];
    }
    sum /= moved_;
    const double wrong = dummy_b ? std::max(sum - a_[i], 0.0)  //
                                 : std::abs(sum - a_[i]);
    residual = std::max(residual, wrong);
    gap += lack(wrong, a_[i], f_[i] + to_f);
    even -= a_[i] * f_[i];
  }
  for (int j = 0; j < m_; ++j) {
    const double sum = sums_[j] / moved_;
    const double wrong = dummy_a ? std::max(sum - b_[j], 0.0)  //
                                 : std::abs(sum - b_[j]);
    residual = std::max(residual, wrong);
    gap += lack(wrong, b_[j], g_[j] - to_f);
    even += b_[j] * g_[j];
  }
  double constant_f = to_f * range_ + (dummy_a ? low_ : 0);
  if (!dummy_a && !dummy_b) constant_f = (even * range_ + low_) / 2;
  for (int i = 0; i < n_; ++i) {
    plan.f[i] = static_cast<T>(f_[i] * range_ + constant_f);
  }
  for (int j = 0; j < m_; ++j) {
    plan.g[j] = static_cast<T>(g_[j] * range_ + (low_ - constant_f));
  }
  gap = constant_ ? 0 : gap * range_;
  *plan.gap =
      static_cast<T>((gap + kRoundings * epsilon * rounding) * moved_);
  *plan.residual = static_cast<T>(residual * moved_);
  *plan.converged =
      gap <= kClose<T> * scale && std::isfinite(*plan.gap);
  return true;
}

template void TransportProblem::Solve(const float*, const float*, const float*,
                                      const float*, int, int, int64_t,
                                      Plan<float>);
template void TransportProblem::Solve(const double*, const double*,
                                      const double*, const double*, int, int,
                                      int64_t, Plan<double>);

}  // namespace deepemd
