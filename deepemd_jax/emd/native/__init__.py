"""The network simplex in C++, called by XLA; see `NetworkSimplex`.

    python -m deepemd_jax.emd.native.build

compiles it where a C++ compiler is at hand; `pip install` and `make` do so by
themselves. Where there is none, POT's compiled core serves.

`transport_simplex.cc` has the method, for balanced problems with positive
masses. `transport_problem.cc` takes any problem: units, unequal totals,
forbidden pairs; and it bounds the error. `handler.cc` is what XLA calls, with a
batch, on several threads. `build.py` compiles it, and `library.py` finds it.
"""
