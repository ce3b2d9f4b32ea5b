"""The network simplex in C++, called by XLA; see `NetworkSimplex`.

    python -m deepemd_jax.emd.native.build

compiles it if there is a C++ compiler; `pip install` and `make` do this, too.
Without a compiler, POT's compiled core is used instead.

`transport_simplex.cc` has the method, for balanced problems with positive
masses. `transport_problem.cc` handles units, unequal totals and forbidden
pairs, and bounds the error. XLA calls `handler.cc` with a batch, which it
solves on several threads. `build.py` compiles the code, and `library.py` finds
it.
"""
