// The network simplex method for small dense transport problems.
//
//     min <C, X>   s.t.  X 1 = a,  X^T 1 = b,  X >= 0
//
// A basis is a spanning tree of the sources and sinks, rooted at a sink. It is
// kept strongly feasible (Cunningham, "A network simplex method", Mathematical
// Programming 11, 1976): an arc without flow points to the root. So no basis
// comes twice, and the method ends, whatever ties there are.

#ifndef DEEPEMD_JAX_EMD_NATIVE_TRANSPORT_SIMPLEX_H_
#define DEEPEMD_JAX_EMD_NATIVE_TRANSPORT_SIMPLEX_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace deepemd {

// Solves one problem after another, in the same memory.
class TransportSimplex {
 public:
  // Makes room for n sources and m sinks. Then fill in cost_row(i)[0..m),
  // a()[0..n) and b()[0..m).
  void Resize(int n, int m);

  // Adds an arc that a similar problem's optimal plan uses, at most n + m - 1 of
  // them. They are tried first, which saves pivots; the optimum is the same.
  // Resize forgets them.
  void AddStartArc(int i, int j);

  double* cost_row(int i) { return &costs_[static_cast<size_t>(i) * stride_]; }
  double* a() { return a_.data(); }
  double* b() { return b_.data(); }

  // Solves the problem. All masses are above 0, and the totals are equal up to
  // rounding. All costs are finite, and within about +-1.
  //
  // Returns the number of pivots; max_pivots if it has not ended by then, when
  // the flow is feasible, but not known to be optimal.
  int64_t Solve(int64_t max_pivots);

  // The optimal potentials: f()[i] + g()[j] <= cost_row(i)[j] up to rounding.
  const double* f() const { return f_.data(); }
  const double* g() const { return g_.data(); }

  // Calls visit(i, j, flow) for the arcs of the basis, the only ones with flow.
  template <typename Visit>
  void VisitFlows(Visit visit) const {
    for (int x = 0; x < n_ + m_; ++x) {
      const int parent = parent_[x];
      if (parent < 0) continue;
      if (x < n_) {
        visit(x, parent - n_, flow_[x]);
      } else {
        visit(parent, x - n_, flow_[x]);
      }
    }
  }

 private:
  void FirstBasis();
  void SendOverStartArcs();
  void SendOverCheapArcs();
  int Send(int i, int j);
  void ListArcs(const std::vector<int32_t>& arcs, int count);
  void HangTree();
  int64_t Pivot(int64_t max_pivots);
  void Enter(int i, int j, double reduced_cost);
  void FinishTree();
  void Unlink(int x);
  void Link(int x, int parent);

  int n_ = 0, m_ = 0;
  int stride_ = 0;  // of the rows of costs_; a multiple of the lanes
  std::vector<double> costs_, a_, b_, f_, g_;
  // Nodes are the sources 0..n-1 and the sinks n..n+m-1. A node's flow is that
  // of the arc between it and its parent. Children form a list.
  std::vector<double> flow_;
  std::vector<int32_t> parent_, first_, next_, previous_, depth_;
  int root_ = 0;
  // Lists of arcs: source, sink, source, sink, and so on.
  std::vector<int32_t> arcs_, start_arcs_;
  // Of the first basis: how many arcs it has so far, and what is left of whom.
  int basis_arcs_ = 0, open_rows_ = 0, open_sinks_ = 0;
  std::vector<char> open_;
  std::vector<double> left_a_, left_b_;
  std::vector<int32_t> extra_a_, extra_b_;
  // Room for the first basis, and for hanging a tree.
  std::vector<double> offset_, row_least_;
  std::vector<int32_t> row_sink_, rows_, chain_, order_;
};

}  // namespace deepemd

#endif  // DEEPEMD_JAX_EMD_NATIVE_TRANSPORT_SIMPLEX_H_
