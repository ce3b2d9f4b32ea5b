"""A call of a Python function from compiled code, without deadlocks.

`jax.pure_callback` copies its arguments to the device again and waits. If
XLA has only one thread (one core), the callback keeps that thread busy, and
sometimes both wait forever. Here the function gets the NumPy arrays that XLA
passes, and uses no device.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_host_call = Primitive("host_call")
_host_call.multiple_results = True


def host_call(
  function: Callable[..., Sequence[np.ndarray]],
  results: Sequence[jax.ShapeDtypeStruct],
  *arguments: jax.Array,
) -> list[jax.Array]:
  """Calls `function` on the host with NumPy arrays.

  Args:
    function: a pure and hashable function that does not use JAX. Under
      `jax.vmap` all its arguments and results have the new axis first.
    results: the shapes and dtypes of the results of the function.
    *arguments: arrays [...] of any shape, the arguments of the function.

  Returns:
    Arrays with the shapes and dtypes of `results`.
  """
  shapes = tuple((x.shape, jnp.dtype(x.dtype)) for x in results)
  return _host_call.bind(*arguments, function=function, results=shapes)


@_host_call.def_abstract_eval
def _shapes(*arguments, function, results):
  del arguments, function
  return [jax.core.ShapedArray(*each) for each in results]


@functools.partial(jax.jit, static_argnames=("function", "results"))
def _run(*arguments, function, results):
  return _host_call.bind(*arguments, function=function, results=results)


_host_call.def_impl(_run)


def _batch(arguments, axes, *, function, results):
  pairs = list(zip(arguments, axes, strict=True))
  (size,) = {x.shape[axis] for x, axis in pairs if axis is not None}
  in_front = [
    jnp.broadcast_to(x, (size, *x.shape))
    if axis is None
    else jnp.moveaxis(x, axis, 0)
    for x, axis in pairs
  ]
  results = tuple(((size, *shape), dtype) for shape, dtype in results)
  found = _host_call.bind(*in_front, function=function, results=results)
  return found, [0] * len(found)


def _lower(context, *arguments, function, results):
  del results
  found, _, _ = mlir.emit_python_callback(
    context,
    lambda *x: tuple(function(*map(np.asarray, x))),
    None,
    list(arguments),
    context.avals_in,
    context.avals_out,
    has_side_effect=False,
    returns_token=False,
  )
  return found


batching.primitive_batchers[_host_call] = _batch
mlir.register_lowering(_host_call, _lower)
