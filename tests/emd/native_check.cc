// Solves random problems of many kinds, for a sanitizer to watch, and checks
// what must hold of every solution.
//
//     native_check COUNT SEED

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "transport_problem.h"

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
struct Case {
  int n, m;
  std::vector<T> cost, a, b;
};

template <typename T>
Case<T> Draw(std::mt19937_64& rng) {
  auto upto = [&](int k) { return static_cast<int>(rng() % k); };
  std::uniform_real_distribution<double> unit(0, 1);
  const int largest = upto(20) ? 12 : 70;
  Case<T> made{1 + upto(largest), 1 + upto(largest), {}, {}, {}};
  const int masses = upto(5), flaw = upto(30);
  // Not 60 orders of magnitude of both: nobody could say what is optimal.
  const int costs = masses == 4 ? upto(3) : upto(6);
  const int units = upto(8);
  made.cost.resize(made.n * made.m);
  for (T& x : made.cost) {
    double value = unit(rng);
    if (costs == 1) value = upto(3);
    if (costs == 2) value = 5;
    if (costs == 3) value = std::pow(10, 60 * value - 30);
    if (costs == 4 && upto(4) == 0) value = kInfinity;
    if (costs == 5) value = (value - 0.5) * 1e6;
    x = static_cast<T>(value);
  }
  double scale = 1;
  const bool is_float = std::is_same_v<T, float>;
  if (units == 1) scale = is_float ? 1e35 : 1e300;
  if (units == 2) scale = is_float ? 1e-18 : 1e-300;
  auto draw_masses = [&](int count, std::vector<T>& to) {
    to.resize(count);
    for (T& x : to) {
      double value = unit(rng);
      if (masses == 1) value = 1;
      if (masses == 2) value = upto(3);
      if (masses == 3) value = std::pow(10, -8 * value);
      if (masses == 4 && upto(3) == 0) value = 1e-30;
      x = static_cast<T>(value);
    }
    to[0] += 1;
    // Some units are as large or as small as numbers are.
    for (T& x : to) x = static_cast<T>(x * scale);
  };
  draw_masses(made.n, made.a);
  draw_masses(made.m, made.b);
  if (upto(3)) {  // equal totals
    double a = 0, b = 0;
    for (T x : made.a) a += x;
    for (T x : made.b) b += x;
    for (T& x : made.b) x = static_cast<T>(x * (a / b));
  }
  if (flaw == 1) made.cost[upto(made.n * made.m)] = std::nan("");
  if (flaw == 2) made.a[upto(made.n)] = -1;
  if (flaw == 3) std::fill(made.b.begin(), made.b.end(), T(0));
  if (flaw == 4) made.b[upto(made.m)] = static_cast<T>(kInfinity);
  return made;
}

// A flow to start from: of the case with its masses in another order, any
// numbers, or none.
template <typename T>
std::vector<T> DrawStart(std::mt19937_64& rng,
                         deepemd::TransportProblem& problem, Case<T> given) {
  const int n = given.n, m = given.m, kind = rng() % 3;
  std::vector<T> flow(n * m), f(n), g(m);
  if (kind == 0) return {};
  if (kind == 1) {
    const int some = 1 + rng() % 20;
    for (T& x : flow) x = rng() % some ? T(0) : T(rng() % 3) - T(1);
    flow[rng() % flow.size()] = static_cast<T>(std::nan(""));
    return flow;
  }
  T gap, residual;
  int32_t steps;
  bool converged;
  std::reverse(given.a.begin(), given.a.end());
  problem.Solve<T>(given.cost.data(), given.a.data(), given.b.data(), nullptr,
                   n, m, 1000000,
                   {flow.data(), f.data(), g.data(), &gap, &residual, &steps,
                    &converged});
  return flow;
}

// Returns whether the solution of a case is what it says.
template <typename T>
bool Check(std::mt19937_64& rng, deepemd::TransportProblem& problem,
           const Case<T>& given, int64_t max_pivots) {
  const int n = given.n, m = given.m;
  const std::vector<T> start = DrawStart(rng, problem, given);
  std::vector<T> flow(n * m), f(n), g(m);
  T gap, residual;
  int32_t steps;
  bool converged;
  problem.Solve<T>(given.cost.data(), given.a.data(), given.b.data(),
                   start.empty() ? nullptr : start.data(), n, m, max_pivots,
                   {flow.data(), f.data(), g.data(), &gap, &residual, &steps,
                    &converged});
  if (std::isnan(gap)) return !converged && std::isnan(flow[0]);
  const double epsilon = std::numeric_limits<T>::epsilon();
  double total_a = 0, total_b = 0, moved = 0, value = 0, dual = 0, worst = 0;
  double paid = 0, terms = 0;
  for (T x : given.a) total_a += x;
  for (T x : given.b) total_b += x;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < m; ++j) {
      const double x = flow[i * m + j], cost = given.cost[i * m + j];
      if (x < 0 || (x > 0 && cost == kInfinity)) return false;
      moved += x;
      if (x == 0) continue;
      value += x * cost;
      paid = std::max(paid, std::abs(cost));
    }
  }
  const double least = std::min(total_a, total_b);
  // Mass times cost may be more than there are numbers for.
  if (least * paid > 1e-3 * std::numeric_limits<T>::max()) return true;
  if (std::isinf(gap)) return !converged;
  // Where pairs are forbidden, the gap is that of the masses that are moved.
  bool forbidden = false;
  for (T x : given.cost) forbidden |= x == static_cast<T>(kInfinity);
  for (int i = 0; i < n; ++i) {
    double mass = 0;
    for (int j = 0; j < m; ++j) mass += flow[i * m + j];
    // More than all that moves is as good as twice that.
    if (!forbidden) mass = std::min<double>(given.a[i], 2 * least);
    dual += mass * f[i];
    terms += mass * std::abs(f[i]);
  }
  for (int j = 0; j < m; ++j) {
    double mass = 0;
    for (int i = 0; i < n; ++i) mass += flow[i * m + j];
    if (!forbidden) mass = std::min<double>(given.b[j], 2 * least);
    dual += mass * g[j];
    terms += mass * std::abs(g[j]);
  }
  worst = std::abs(moved - least);
  if (worst > 1e-5 * least) return false;
  if (max_pivots > 100000 && !converged) return false;
  // The dual value is below the value, and the gap is what is between them.
  double rounding = 64 * epsilon * (least * paid + terms);
  if (!std::isfinite(terms)) return true;
  // Totals that are so near count as equal.
  if (std::abs(total_a - total_b) <= 2e-5 * least) {
    rounding += 1e-5 * least * paid;
  }
  return value - dual <= static_cast<double>(gap) * 1.001 + rounding + 1e-300;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  std::mt19937_64 rng(std::strtoull(arguments[2], nullptr, 10));
  deepemd::TransportProblem problem;
  const long cases = std::strtol(arguments[1], nullptr, 10);
  for (long k = 0; k < cases; ++k) {
    const int64_t limit = rng() % 10 ? 1000000 : rng() % 5;
    const bool good = rng() % 2 ? Check(rng, problem, Draw<float>(rng), limit)
                                : Check(rng, problem, Draw<double>(rng), limit);
    if (!good) {
      std::printf("problem %ld is wrong\n", k);
      return 1;
    }
  }
  std::printf("%ld problems\n", cases);
}
