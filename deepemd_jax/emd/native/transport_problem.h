// One transport problem as a user gives it, with any masses and costs; and its
// solution, with a bound on its error.

#ifndef DEEPEMD_JAX_EMD_NATIVE_TRANSPORT_PROBLEM_H_
#define DEEPEMD_JAX_EMD_NATIVE_TRANSPORT_PROBLEM_H_

#include <cstdint>
#include <vector>

#include "transport_simplex.h"

namespace deepemd {

// Where a solution goes. problem.py, class Plan, says what the fields mean.
template <typename T>
struct Plan {
  T* flow;  // [n, m]
  T* f;     // [n]
  T* g;     // [m]
  T* gap;
  T* residual;
  int32_t* steps;
  bool* converged;
};

// Solves problems one after another, in the same memory.
class TransportProblem {
 public:
  // Solves the problem of cost [n, m], a [n] and b [m]. A cost of +infinity
  // forbids a pair. A problem without meaning gives NaN, and so does one that
  // has no plan without forbidden pairs. start [n, m] is the optimal flow of a
  // similar problem, or null.
  template <typename T>
  void Solve(const T* cost, const T* a, const T* b, const T* start, int n,
             int m, int64_t max_pivots, Plan<T> plan);

 private:
  template <typename T>
  bool Prepare(const T* cost, const T* a, const T* b);
  template <typename T>
  int64_t RunSimplex(const T* cost, const T* start, int64_t max_pivots);
  template <typename T>
  void FillSimplex(const T* cost);
  template <typename T>
  void AddStart(const T* start);
  template <typename T>
  void CompletePotentials(const T* cost, bool optimal);
  template <typename T>
  bool WritePlan(const T* cost, Plan<T> plan);

  // The cost of a pair in units of range_; at least 0. The dummies have the
  // numbers n_ and m_.
  template <typename T>
  double Uncapped(const T* cost, int i, int j) const {
    if (i == n_ || j == m_) return 0;
    return (cost[static_cast<int64_t>(i) * m_ + j] - low_) / range_;
  }

  // Whether so small a flow is the rounding of larger ones, and not the mass of
  // a small node.
  bool IsRounding(int i, int j, double flow) const {
    const double less = a_[i] < b_[j] ? a_[i] : b_[j];
    return flow <= nothing_ && (flow < 0.01 * less || flow > 1.01 * less);
  }

  // As the simplex has it: at most 1.
  template <typename T>
  double Scaled(const T* cost, int i, int j) const {
    const double x = Uncapped(cost, i, j);
    return x < 1 ? x : 1;
  }

  TransportSimplex simplex_;
  int n_ = 0, m_ = 0;
  // The masses in units of moved_, and the potentials in units of range_. The
  // last ones are those of the dummies: one of them takes what one side has
  // above the other.
  std::vector<double> a_, b_, f_, g_;
  std::vector<double> sums_;             // of the columns
  std::vector<int32_t> rows_, columns_;  // the nodes with mass
  double moved_ = 0;                     // mass that the dummies do not move
  double nothing_ = 0;                   // so little mass is rounding
  double low_ = 0, range_ = 1;           // of the costs
  double smallest_ = 0;                  // absolute cost that is not 0
  bool constant_ = false;                // all costs are the same
  bool forbidden_ = false;               // some costs are infinite
  bool capped_ = false;                  // some costs are above low_ + range_
};

}  // namespace deepemd

#endif  // DEEPEMD_JAX_EMD_NATIVE_TRANSPORT_PROBLEM_H_
