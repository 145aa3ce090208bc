"""A pickle read as data: a stack machine that builds plain values and calls nothing.

Python's own Unpickler calls what the stream names and lets a few bytes ask for gigabytes. Here
a name is only a word, a call only a record of what would be called with what, and every opcode
that a released file does not use is refused.
"""

import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from io import BytesIO
from mmap import mmap
from typing import IO, Any, cast

from distill.errors import UserError

ORDERED_DICT = "collections.OrderedDict"
EASY_DICT = "dnnlib.util.EasyDict"
MODULE_DICT = "torch.nn.modules.container.ModuleDict"
DTYPE = "numpy.dtype"
ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
GETATTR = "builtins.getattr"
# What a hook of SiDA's networks is: a module's method of this name. Nothing else is looked up.
HOOK = "_apply_forced_weight_normalization"

# A block takes 1,700, with hooks 3,500; the largest released network has 36. So many are read in a
# second or two.
MAX_OPCODES = 400_000


@dataclass(frozen=True)
class Name:
    """A function or class that the stream names, such as "numpy.dtype"."""

    path: str


@dataclass(eq=False, slots=True)
class Node:
    """An object that the stream describes: what would be called, with what, and its state."""

    path: str
    args: tuple[Any, ...]
    state: object = None


class Mark:
    """Where on the stack a sequence begins."""


class RefusedError(UserError):
    """A stream that this machine does not read; the message says what it holds."""


def read_pickle(
    stream: BytesIO | mmap,
    names: Collection[str],
    max_opcodes: int = MAX_OPCODES,
    persistent: bool = False,
) -> object:
    """Read one pickle from where the stream stands up to its end.

    Dicts of every kind become dicts; what would be called becomes a `Node`.

    Args:
        stream: the bytes, in memory or mapped: a read beyond the end must be cheap.
        names: the functions and classes that it may name.
        max_opcodes: refuse a longer program.
        persistent: whether objects may refer to others by a persistent identifier, a `Node`
            of path "persistent".

    Raises:
        RefusedError: the stream is damaged, or names or does what is not admitted.
    """
    machine = _Machine(names)
    opcodes = pickletools.genops(cast("IO[bytes]", stream))
    try:
        for count, (opcode, argument, _) in enumerate(opcodes):
            if count >= max_opcodes:
                raise RefusedError(f"it is a program of more than {max_opcodes} steps")
            if opcode.name == "STOP":
                break
            step = STEPS.get(opcode.name)
            if step is None or (opcode.name == "BINPERSID" and not persistent):
                raise RefusedError(f"it uses the opcode {opcode.name}, which no network needs")
            step(machine, argument)
        (value,) = machine.stack
        return value
    except (ValueError, IndexError, KeyError):  # of genops, of the stack, of the memo
        raise RefusedError("it is damaged or no pickle") from None


class _Machine:
    """Stack, memo and the names admitted. Every method pops and pushes as its opcode does."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: object) -> None:
        """Push a literal."""
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """Pop the values above the last mark, and the mark."""
        values: list[Any] = []
        while not isinstance(value := self.stack.pop(), Mark):
            values.append(value)
        return values[::-1]

    def container(self, kind: type) -> Any:
        """The container on top of the stack, which must be of that kind."""
        if type(top := self.stack[-1]) is not kind:
            raise RefusedError(f"it fills something that is no {kind.__name__}")
        return top

    def tuple_of(self, count: int) -> None:
        """Replace the `count` topmost values by a tuple of them."""
        self.push(tuple([self.stack.pop() for _ in range(count)][::-1]))

    def append(self, values: list[Any]) -> None:
        """Append to the list below."""
        self.container(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Set keys and values, in turn, of the dict below."""
        self.container(dict).update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def add_items(self, values: list[Any]) -> None:
        """Add to the set below."""
        self.container(set).update(map(_key, values))

    def name(self, module: object, name: object) -> None:
        """Push a name, if it is admitted."""
        if type(module) is not str or type(name) is not str:
            raise RefusedError("it names something that is no text")
        path = f"{module}.{name}"
        if path not in self.names:
            raise RefusedError(f"it names {path[:80]!r}, which no network needs")
        self.stack.append(Name(path))

    def call(self, callables: Collection[str]) -> None:
        """Replace a name and its arguments by the object that they describe."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise RefusedError("it calls something that is no name")
        path = function.path
        if (path in (EASY_DICT, MODULE_DICT)) != (path in callables):
            raise RefusedError(f"it calls {path!r} in a way that no network needs")
        if path in (ORDERED_DICT, EASY_DICT, MODULE_DICT) and arguments:
            raise RefusedError(f"it calls {path!r} with arguments")
        if path == GETATTR and not _is_hook(arguments):
            raise RefusedError(f"it calls {path!r} for another attribute than {HOOK!r}")
        is_dict = path in (ORDERED_DICT, EASY_DICT)
        self.stack.append({} if is_dict else Node(path, arguments))

    def build(self) -> None:
        """Give the object below its state, which stays a mere value."""
        state, node = self.stack.pop(), self.stack[-1]
        kinds = (MODULE_DICT, DTYPE, *ARRAYS)
        if type(node) is not Node or node.path not in kinds or node.state:
            raise RefusedError("it changes the state of an object that has none")
        node.state = state


def _key(value: object) -> str:
    # Hooks are numbered. As text, for numbers can be chosen so that they collide, and a dict of
    # them takes hours.
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        raise RefusedError("it has a key that is no text")
    return value


def _is_hook(arguments: tuple[Any, ...]) -> bool:
    """Whether these are arguments of the one getattr that released files call."""
    return len(arguments) == 2 and type(arguments[0]) is Node and arguments[1] == HOOK


def _fixed(value: Callable[[], object]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value())


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.tuple_of(count)


def _nothing(machine: _Machine, argument: object) -> None: ...


STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "NONE": _fixed(lambda: None),
    "NEWTRUE": _fixed(lambda: True),
    "NEWFALSE": _fixed(lambda: False),
    "EMPTY_TUPLE": _fixed(tuple),
    "EMPTY_LIST": _fixed(list),
    "EMPTY_DICT": _fixed(dict),
    "EMPTY_SET": _fixed(set),
    "MARK": _fixed(Mark),
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "BINFLOAT": _Machine.push,
    "BINUNICODE": _Machine.push,
    "SHORT_BINUNICODE": _Machine.push,
    "BINUNICODE8": _Machine.push,
    "BINBYTES": _Machine.push,
    "SHORT_BINBYTES": _Machine.push,
    "BINBYTES8": _Machine.push,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.since_mark()),
    "BINPUT": lambda machine, index: machine.memo.__setitem__(index, machine.stack[-1]),
    "LONG_BINPUT": lambda machine, index: machine.memo.__setitem__(index, machine.stack[-1]),
    "MEMOIZE": lambda machine, _: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "GLOBAL": lambda machine, path: machine.name(*path.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(machine.stack.pop(-2), machine.stack.pop()),
    "REDUCE": lambda machine, _: machine.call(callables=()),
    "NEWOBJ": lambda machine, _: machine.call(callables=(EASY_DICT, MODULE_DICT)),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.push(Node("persistent", (machine.stack.pop(),))),
}
