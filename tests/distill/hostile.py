"""Released files taken apart, changed, and written again; and random damage to them."""

import copy
import io
import pickle

import torch

from distill.errors import UserError
from distill.importing import load_network
from distill.importing.machine import GETATTR, MODULE_DICT, Name, Node, read_pickle
from distill.importing.snapshot import NAMES
from distill.networks import Denoiser
from tests.reference_numbers import FIXTURES


def take_apart(name="ncsnpp"):
    """A released file's content, as nested values that can be changed.

    Without the modules that hooks belong to: they hold their own hooks, and so on without an end.
    """
    content = read_pickle(io.BytesIO((FIXTURES / f"{name}.pkl").read_bytes()), NAMES)
    _cut_hooks(content)
    return content


def _cut_hooks(value):
    for container, key in list(_places(value, cut=True)):
        hook = _get(container, key)
        if isinstance(hook, Node) and hook.path == GETATTR:
            hook.args = (Node("torch.nn.modules.container.ModuleDict", ()), hook.args[1])


def state_of(node):
    """The state of a module, however it is described."""
    return node.state if node.path == MODULE_DICT else node.args[0]["state"]


def model_of(content):
    """The raw network in a file's content: its meta dict."""
    return state_of(content["ema"])["_modules"]["model"].args[0]


def tensor_of(content, *path, kind="_parameters"):
    """A tensor's node, down the given modules, and a function that puts another in its place."""
    state = model_of(content)["state"]
    for part in path[:-1]:
        state = state_of(state["_modules"][part])
    return state[kind][path[-1]], lambda value: state[kind].__setitem__(path[-1], value)


def storage(tensor, zipped=False):
    """The node of a storage that holds a tensor's elements."""
    elements = tensor.flatten().clone().untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=elements, dtype=tensor.dtype, _internal=True)
    buffer = io.BytesIO()
    torch.save(typed, buffer, _use_new_zipfile_serialization=zipped)
    return Node("torch.storage._load_from_bytes", (buffer.getvalue(),))


def parameter(storage_node, size, stride, offset=0):
    """The node of a parameter over a storage."""
    args = (storage_node, offset, size, stride, False, {})
    tensor = Node("torch._utils._rebuild_tensor_v2", args)
    return Node("torch._utils._rebuild_parameter", (tensor, False, {}))


def put_together(value):
    """Write nested values as a pickle, calls and all."""
    return b"\x80\x04" + _opcodes(value) + b"."


def _opcodes(value):
    several = lambda values: b"".join(map(_opcodes, values))  # noqa: E731
    if isinstance(value, Name):
        module, _, name = value.path.rpartition(".")
        return f"c{module}\n{name}\n".encode()
    if isinstance(value, Node):
        made = b"\x81" if value.path == MODULE_DICT else b"R"
        built = _opcodes(Name(value.path)) + _opcodes(value.args) + made
        return built + (b"" if value.state is None else _opcodes(value.state) + b"b")
    if isinstance(value, tuple):
        return b"(" + several(value) + b"t"
    if isinstance(value, list):
        return b"](" + several(value) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(several(item) for item in value.items()) + b"u"
    if isinstance(value, set):
        return b"\x8f(" + several(value) + b"\x90"
    return pickle.dumps(value, 3)[2:-1]  # a literal, without the header and the end


def outcome(path, content):
    """Load a file of that content: a network, or an error of one line; nothing else."""
    path.write_bytes(content)
    try:
        network = load_network(path)
    except UserError as error:
        message = str(error)
        assert message.count("\n") == 0, message
        assert message.isprintable(), message
        assert len(message) < 400 + len(str(path)), message
        return message
    assert isinstance(network, Denoiser)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    return network


def mutated_bytes(content, boundaries, rng):
    """Damage a file: bits, a cut, and whole opcodes deleted, doubled, exchanged or made up."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        here, there = (rng.randrange(len(boundaries) - 1) for _ in range(2))
        start, end = boundaries[here], boundaries[here + 1]
        match rng.randrange(8):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:  # a program's bit, not one of the millions of a tensor's
                data[min(start, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 2:
                data[min(start, len(data) - 1)] = rng.randrange(256)
            case 3:
                del data[start:end]
            case 4:
                data[start:start] = data[start:end]
            case 5:
                data[start:end] = content[boundaries[there] : boundaries[there + 1]]
            case 6:
                data[start:start] = rng.choice(SPLICES)
            case _:
                del data[max(len(data) - rng.randrange(1000), 2) :]
    return bytes(data)


SPLICES = [
    b"cos\nsystem\n(Vtouch EXECUTED\ntR",
    b"\x8c\x05posix\x8c\x06system\x93\x8c\x0etouch EXECUTED\x85R",
    b"cbuiltins\neval\n(V1\ntR",
    b"0", b"2", b"1", b"(", b"t", b"R", b"b", b"\x81", b"\x92", b"o", b"Q", b"P1\n", b"\x82\x01",
    b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"B\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255,
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"N", b"]", b"}",
    b"\x8f", b")", b"\x94", b"h\x00", b"u", b"s", b"e", b"a", b"\x90", b"I99\n", b"L99L\n",
    b"S'x'\n", b"Vx\n", b"F1.5\n", b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x97", b"\x98",
    b"i os\nsystem\n", b"\x91", b"\x80\x09",
]  # fmt: skip


def mutated_tree(content, rng):
    """Write a file with a value of another kind somewhere in its content."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        container, key = rng.choice(list(_places(content)))
        value = _get(container, key)
        stranger = rng.choice(STRANGERS)(value, rng)
        _set(container, key, stranger)
    return put_together(content)


def _places(value, cut=False):
    """Every place that holds a value: (container, key); those of hooks as well, unless `cut`."""
    if isinstance(value, Node):
        if cut and value.path == GETATTR:
            return
        for index, item in enumerate(value.args):
            yield value, index
            yield from _places(item, cut)
        if value.state is not None:
            yield value, "state"
            yield from _places(value.state, cut)
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            yield value, key
            yield from _places(item, cut)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield value, index
            yield from _places(item, cut)


def _get(container, key):
    if isinstance(container, Node):
        return container.state if key == "state" else container.args[key]
    return container[key]


def _set(container, key, value):
    if not isinstance(container, Node):
        container[key] = value
    elif key == "state":
        container.state = value
    else:
        container.args = (*container.args[:key], value, *container.args[key + 1 :])


def _changed(value, rng):
    """The same kind of value, another one."""
    match value:
        case bool():
            return not value
        case int():
            return rng.choice((value + 1, -value, 0, -1, 2**31, 2**40, 2**63, 2**500, value * 2))
        case float():
            return rng.choice((-value, 0.0, float("nan"), float("inf"), 1e300))
        case str():
            return rng.choice(("", value + "x", value[::-1], "ä\n\udc80", "x" * 10_000))
        case bytes():
            cut = rng.randrange(min(len(value), rng.choice((600, 2**30))) + 1)
            return rng.choice(
                (b"", value[:cut], value + b"x", value[:cut] + b"\xff" + value[cut + 1 :])
            )
        case tuple() | list():
            shuffled = list(value)
            rng.shuffle(shuffled)
            longer = [*value, *value[:1]]
            return type(value)(rng.choice((shuffled, longer, value[:-1], [2**40] * len(value))))
        case dict():
            kept = dict(value)
            for key in rng.sample(sorted(kept), min(len(kept), 1)):
                kept[rng.choice(("x", "a\nb", key + ".y"))] = kept.pop(key)
            return kept
    return value


STRANGERS = [
    _changed,
    _changed,
    _changed,
    lambda *_: None,
    lambda *_: -1,
    lambda *_: 2**400,
    lambda *_: float("nan"),
    lambda *_: "text",
    lambda *_: b"bytes",
    lambda *_: [],
    lambda *_: (),
    lambda *_: {},
    lambda *_: {"a"},
    lambda *_: Name("numpy.dtype"),
    lambda *_: Node("collections.OrderedDict", ()),
    lambda *_: Node("os.system", ("touch EXECUTED",)),
    lambda *_: Node("torch.storage._load_from_bytes", (b"",)),
    lambda *_: Node(MODULE_DICT, ()),
]
