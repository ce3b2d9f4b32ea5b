"""Reads the content of a pickle without running anything.

A pickle is a program for a small stack machine, and Python's own machine can
call anything. This machine has the few instructions that a state dict needs,
and it cannot call anything. A name in a pickle stays a name (`Global`), and an
instruction to call a function becomes a value (`Call`). Everything else in a
pickle is refused, and the error gives its place.

Memory and time are bounded by the pickle's length, which is bounded.

References:
  CPython's `pickletools`, which documents each instruction; PyTorch's
  `torch/_weights_only_unpickler.py`, which takes about the same instructions.
"""

import dataclasses
import pickle
import struct
from typing import Any

LONGEST = 8 * 2**20  # bytes; a state dict takes some 200 per tensor
_STEPS = 400_000  # instructions; a state dict takes some 30 per tensor
_STRING = 4096  # bytes
_DEEPEST = 16
_LARGEST_KEY = 2**31
_INTEGER = 10  # bytes of the number that PyTorch's older files begin with


class RefusedError(ValueError):
  """An error: a pickle contains something that is refused. The message names it
  and its place."""


@dataclasses.dataclass(frozen=True, slots=True)
class Global:
  """A name, which is not looked up.

  Attributes:
    name: the name, such as "torch.FloatStorage".
  """

  name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
  """A call, which is not made.

  Attributes:
    name: the name of the function or class.
    arguments: the arguments of the call.
  """

  name: str
  arguments: tuple


@dataclasses.dataclass(frozen=True, slots=True)
class Persistent:
  """A reference to something outside of the pickle.

  Attributes:
    key: what identifies it.
  """

  key: tuple


def read(
  content: bytes | memoryview,
  globals_: frozenset[str],
  calls: frozenset[str],
  start: int = 0,
  longest: int = LONGEST,
) -> tuple[Any, int]:
  """Reads one pickle.

  Args:
    content: bytes in which the pickle begins at `start`; more may follow.
    globals_: the names that it may contain.
    calls: the names among them that it may call.
    start: an index of `content`.
    longest: the largest number of bytes that it may have.

  Returns:
    The value, and the index of its end in `content`. The value consists of
    None, booleans, integers, floats, strings, lists, tuples, dictionaries with
    strings or integers as keys, `Global`, `Call` and `Persistent`. An
    `OrderedDict` is a dictionary without its attributes.

  Raises:
    RefusedError: it contains anything else, is damaged, or is too large.
  """
  content = memoryview(content)[: start + longest]
  return _Machine(content, globals_, calls, start).run()


_MARK = object()
_ORDERED = "collections.OrderedDict"
_CONSTANTS = {
  pickle.NONE[0]: None,
  pickle.NEWTRUE[0]: True,
  pickle.NEWFALSE[0]: False,
  pickle.EMPTY_TUPLE[0]: (),
}
_FIXED = {  # instruction -> how its number is written
  pickle.BININT[0]: "<i",
  pickle.BININT1[0]: "<B",
  pickle.BININT2[0]: "<H",
  pickle.BINFLOAT[0]: ">d",
}
_STRINGS = {  # instruction -> how the length is written
  pickle.BINUNICODE[0]: "<I",
  pickle.SHORT_BINUNICODE[0]: "<B",
  pickle.BINSTRING[0]: "<I",  # from Python 2
  pickle.SHORT_BINSTRING[0]: "<B",
}
_TUPLES = {pickle.TUPLE1[0]: 1, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
_PUTS = {pickle.BINPUT[0]: "<B", pickle.LONG_BINPUT[0]: "<I"}
_GETS = {pickle.BINGET[0]: "<B", pickle.LONG_BINGET[0]: "<I"}


class _Machine:
  def __init__(self, content, globals_, calls, start):
    self._content = content
    self._at = self._place = start
    # There is one value per name, however often the pickle names it.
    self._globals = {name: Global(name) for name in globals_}
    self._calls = calls
    self._stack: list = []
    self._memo: dict[int, Any] = {}

  def run(self) -> tuple[Any, int]:
    for _ in range(_STEPS):
      self._place = self._at
      code = self._take(1)[0]
      if code == pickle.STOP[0]:
        value = self._pop()
        if self._stack:
          raise self._refused("it leaves values on the stack")
        self._check(value)
        return value, self._at
      self._step(code)
    raise self._refused(f"more than {_STEPS} instructions")

  def _step(self, code: int) -> None:
    """Runs an instruction. Here are those that add or store a value."""
    if code in _CONSTANTS:
      self._stack.append(_CONSTANTS[code])
    elif code in _FIXED:
      self._stack.append(self._number(_FIXED[code]))
    elif code == pickle.LONG1[0]:
      length = self._number("<B")
      if length > _INTEGER:
        raise self._refused(f"an integer of {length} bytes")
      value = int.from_bytes(self._take(length), "little", signed=True)
      self._stack.append(value)
    elif code in _STRINGS:
      self._stack.append(self._string(self._number(_STRINGS[code])))
    elif code in _PUTS:
      self._put(self._number(_PUTS[code]))
    elif code == pickle.MEMOIZE[0]:
      self._put(len(self._memo))
    elif code in _GETS:
      place = self._number(_GETS[code])
      if place not in self._memo:
        raise self._refused(f"memo {place} is not set")
      self._stack.append(self._memo[place])
    elif code == pickle.MARK[0]:
      self._stack.append(_MARK)
    elif code == pickle.EMPTY_LIST[0]:
      self._stack.append([])
    elif code == pickle.EMPTY_DICT[0]:
      self._stack.append({})
    else:
      self._combine(code)

  def _combine(self, code: int) -> None:
    """Runs one of the other instructions: those that combine values, names, and
    notes."""
    if code in _TUPLES:
      self._stack.append(self._pop_several(_TUPLES[code]))
    elif code == pickle.TUPLE[0]:
      self._stack.append(self._pop_to_mark())
    elif code in (pickle.APPEND[0], pickle.APPENDS[0]):
      one = code == pickle.APPEND[0]
      values = self._pop_several(1) if one else self._pop_to_mark()
      self._top(list).extend(values)
    elif code in (pickle.SETITEM[0], pickle.SETITEMS[0]):
      one = code == pickle.SETITEM[0]
      self._set(self._pop_several(2) if one else self._pop_to_mark())
    elif code == pickle.GLOBAL[0]:
      self._global(f"{self._line()}.{self._line()}")
    elif code == pickle.STACK_GLOBAL[0]:
      module, name = self._pop_several(2)
      if not isinstance(module, str) or not isinstance(name, str):
        raise self._refused("a name that is not a string")
      self._global(f"{module}.{name}")
    elif code == pickle.REDUCE[0]:
      self._call()
    elif code == pickle.BUILD[0]:
      # These are the attributes of an OrderedDict: the versions of layers in a
      # state dict. They are left out.
      if type(self._pop()) is not dict:
        raise self._refused("a state that is not a dictionary")
      self._top(dict)
    elif code == pickle.BINPERSID[0]:
      key = self._pop()
      if type(key) is not tuple:
        raise self._refused("a reference that is not a tuple")
      self._stack.append(Persistent(key))
    elif code == pickle.PROTO[0]:
      if (protocol := self._number("<B")) not in (2, 3, 4, 5):
        raise self._refused(f"protocol {protocol}")
    elif code == pickle.FRAME[0]:
      self._take(8)  # a hint for readers of streams
    else:
      raise self._refused(f"instruction {code:#04x}")

  def _refused(self, what: str) -> RefusedError:
    return RefusedError(f"{what}, at byte {self._place}")

  def _take(self, count: int) -> memoryview:
    part = self._content[self._at : self._at + count]
    if len(part) < count:
      raise self._refused("it is cut off, or too long")
    self._at += count
    return part

  def _number(self, layout: str):
    return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

  def _string(self, length: int) -> str:
    if length > _STRING:
      raise self._refused(f"a string of {length} bytes")
    try:
      return str(self._take(length), "utf-8")
    except UnicodeDecodeError:
      raise self._refused("a string that is not UTF-8") from None

  def _line(self) -> str:
    """Reads to the end of the line, which is part of an instruction."""
    line = bytes(self._content[self._at : self._at + 256])
    end = line.find(b"\n")
    if end < 0:
      raise self._refused("a name that does not end")
    self._at += end + 1
    return str(line[:end], "ascii", "backslashreplace")

  def _pop(self):
    if not self._stack or self._stack[-1] is _MARK:
      raise self._refused("there is no value to take")
    return self._stack.pop()

  def _pop_several(self, count: int) -> tuple:
    return tuple(self._pop() for _ in range(count))[::-1]

  def _pop_to_mark(self) -> tuple:
    for place in range(len(self._stack) - 1, -1, -1):
      if self._stack[place] is _MARK:
        values = tuple(self._stack[place + 1 :])
        del self._stack[place:]
        return values
    raise self._refused("there is no mark")

  def _top(self, kind: type):
    """Returns the last value, which must be of this kind."""
    if not self._stack or type(self._stack[-1]) is not kind:
      raise self._refused(f"there is no {kind.__name__} to add to")
    return self._stack[-1]

  def _put(self, place: int) -> None:
    if not self._stack or self._stack[-1] is _MARK:
      raise self._refused("there is no value to keep")
    self._memo[place] = self._stack[-1]

  def _set(self, items: tuple) -> None:
    if len(items) % 2:
      raise self._refused("a key without a value")
    target = self._top(dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
      if type(key) not in (str, int):
        raise self._refused(f"a key that is a {type(key).__name__}")
      # Larger numbers could be chosen so that their hashes collide.
      if type(key) is int and abs(key) > _LARGEST_KEY:
        raise self._refused("a key that is too large")
      target[key] = value

  def _global(self, name: str) -> None:
    if name not in self._globals:
      raise self._refused(f"it names {name!r:.100}")
    self._stack.append(self._globals[name])

  def _call(self) -> None:
    named, arguments = self._pop_several(2)
    if not isinstance(named, Global) or named.name not in self._calls:
      what = named.name if isinstance(named, Global) else type(named).__name__
      raise self._refused(f"it calls {what!r:.100}")
    if type(arguments) is not tuple:
      raise self._refused("arguments that are not a tuple")
    if named.name != _ORDERED:
      self._stack.append(Call(named.name, arguments))
    elif arguments:
      raise self._refused("a dictionary made with arguments")
    else:
      self._stack.append({})

  def _check(self, value) -> None:
    """Raises an error if a value contains itself or is nested too deep, so that
    other code may traverse it."""
    deepest: dict[int, int] = {}  # by the ID of what was traversed
    waiting = [(value, 0)]
    steps = 0
    while waiting:
      found, depth = waiting.pop()
      if deepest.get(id(found), -1) >= depth:
        continue
      steps += 1 + len(parts(found))
      if depth > _DEEPEST or steps > _STEPS:
        raise self._refused("it is nested too deep, or contains itself")
      deepest[id(found)] = depth
      waiting += [(x, depth + 1) for x in parts(found) if parts(x)]


def parts(value):
  """Returns the values that a value contains."""
  if isinstance(value, dict):
    return value.values()
  if isinstance(value, list | tuple):
    return value
  if isinstance(value, Call):
    return value.arguments
  return value.key if isinstance(value, Persistent) else ()
