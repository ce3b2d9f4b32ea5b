// What XLA calls: a batch of transport problems, on some threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>

#include "transport_problem.h"
#include "xla/ffi/api/ffi.h"

namespace deepemd {
namespace {

namespace ffi = xla::ffi;

// Problems of one batch. Whoever has time takes the next.
class Batch {
 public:
  Batch(int64_t count, std::function<void(TransportProblem&, int64_t)> solve)
      : count_(count), solve_(std::move(solve)) {}

  // Solves until no problem is left. Throws nothing: whoever waits must be able
  // to count on every problem.
  void Work() {
    TransportProblem problem;
    for (;;) {
      const int64_t i = next_.fetch_add(1);
      if (i >= count_) return;
      try {
        solve_(problem, i);
      } catch (const std::exception&) {
        failed_ = true;  // there is no memory
      }
      if (done_.fetch_add(1) + 1 == count_) {
        std::lock_guard<std::mutex> lock(mutex_);
        finished_.notify_all();
      }
    }
  }

  // Waits for the problems that others have begun. A helper that has not begun
  // by now will find nothing to do, so that nobody has to wait for it.
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [this] { return done_.load() == count_; });
  }

  bool failed() const { return failed_; }

 private:
  const int64_t count_;
  const std::function<void(TransportProblem&, int64_t)> solve_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::condition_variable finished_;
};

template <ffi::DataType kType>
ffi::Error SolveBatch(ffi::ThreadPool pool, int64_t threads, int64_t max_pivots,
                      ffi::Buffer<kType> cost, ffi::Buffer<kType> a,
                      ffi::Buffer<kType> b, ffi::Buffer<kType> start,
                      ffi::ResultBuffer<kType> flow,
                      ffi::ResultBuffer<kType> f, ffi::ResultBuffer<kType> g,
                      ffi::ResultBuffer<kType> gap,
                      ffi::ResultBuffer<kType> residual,
                      ffi::ResultBuffer<ffi::DataType::S32> steps,
                      ffi::ResultBuffer<ffi::DataType::PRED> converged) {
  const auto shape = cost.dimensions();
  if (shape.size() < 2) {
    return ffi::Error::InvalidArgument("cost must be [..., n, m]");
  }
  const int64_t n = shape[shape.size() - 2], m = shape[shape.size() - 1];
  const int64_t count = static_cast<int64_t>(gap->element_count());
  if (n < 1 || m < 1 || n + m > (1 << 24) ||
      static_cast<int64_t>(cost.element_count()) != count * n * m ||
      static_cast<int64_t>(a.element_count()) != count * n ||
      static_cast<int64_t>(b.element_count()) != count * m ||
      (start.element_count() != 0 &&
       start.element_count() != cost.element_count())) {
    return ffi::Error::InvalidArgument("shapes do not fit each other");
  }
  const auto* costs = cost.typed_data();
  const auto *as = a.typed_data(), *bs = b.typed_data();
  // Empty where there is none.
  const auto* starts = start.element_count() ? start.typed_data() : nullptr;
  auto *flows = flow->typed_data(), *fs = f->typed_data();
  auto *gs = g->typed_data(), *gaps = gap->typed_data();
  auto* residuals = residual->typed_data();
  auto* all_steps = steps->typed_data();
  auto* all_converged = converged->typed_data();
  using T = std::remove_pointer_t<decltype(flows)>;
  auto batch = std::make_shared<Batch>(
      count, [=](TransportProblem& problem, int64_t i) {
        problem.Solve<T>(
            costs + i * n * m, as + i * n, bs + i * m,
            starts ? starts + i * n * m : nullptr, static_cast<int>(n),
            static_cast<int>(m), max_pivots,
            Plan<T>{flows + i * n * m, fs + i * n, gs + i * m, gaps + i,
                    residuals + i, all_steps + i, all_converged + i});
      });
  const int64_t helpers = std::min<int64_t>(
      {threads > 0 ? threads : pool.num_threads(), pool.num_threads(), count}) - 1;
  try {
    for (int64_t k = 0; k < helpers; ++k) {
      pool.Schedule([batch] { batch->Work(); });
    }
  } catch (const std::exception&) {
    // Then there are fewer helpers.
  }
  batch->Work();
  batch->Wait();
  if (batch->failed()) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "no memory for a transport problem");
  }
  return ffi::Error::Success();
}

template <ffi::DataType kType>
auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<int64_t>("threads")
      .Attr<int64_t>("max_pivots")
      .Arg<ffi::Buffer<kType>>()
      .template Arg<ffi::Buffer<kType>>()
      .template Arg<ffi::Buffer<kType>>()
      .template Arg<ffi::Buffer<kType>>()
      .template Ret<ffi::Buffer<kType>>()
      .template Ret<ffi::Buffer<kType>>()
      .template Ret<ffi::Buffer<kType>>()
      .template Ret<ffi::Buffer<kType>>()
      .template Ret<ffi::Buffer<kType>>()
      .template Ret<ffi::Buffer<ffi::DataType::S32>>()
      .template Ret<ffi::Buffer<ffi::DataType::PRED>>();
}

}  // namespace
}  // namespace deepemd

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    deepemd_transport_float32,
    deepemd::SolveBatch<xla::ffi::DataType::F32>,
    deepemd::Binding<xla::ffi::DataType::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    deepemd_transport_float64,
    deepemd::SolveBatch<xla::ffi::DataType::F64>,
    deepemd::Binding<xla::ffi::DataType::F64>());
