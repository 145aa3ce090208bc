"""Released files are read whole, and whatever else a file holds, nothing of it runs."""

import io
import os
import pickle
import pickletools
import random
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import UserError
from distill.importing import load_network, read_snapshot
from distill.importing.machine import MODULE_DICT, Name, Node
from distill.networks import Denoiser
from tests.distill.hostile import (
    model_of,
    mutated_bytes,
    mutated_tree,
    outcome,
    parameter,
    put_together,
    state_of,
    storage,
    take_apart,
    tensor_of,
)
from tests.reference_numbers import FIXTURES


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """The source in the fixtures, and every attack here, would write a file EXECUTED."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "EXECUTED").exists()


def outcome_of(content):
    return outcome(Path("network.pkl"), content)


def refused(content):
    message = outcome_of(content)
    assert isinstance(message, str), "it was read"
    return message


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_a_released_file_is_read(name):
    path = FIXTURES / f"{name}.pkl"
    assert b"EXECUTED" in path.read_bytes(), "the fixture is no trap any more"
    network = load_network(path)
    assert not network.training
    assert network.config.architecture == name
    assert load_network(str(path)).config == network.config
    with np.load(FIXTURES / f"{name}.npz") as case:
        x, sigma, labels = (torch.from_numpy(case[key]) for key in ("x", "sigma", "labels"))
        with torch.no_grad():
            np.testing.assert_allclose(network(x, sigma, labels), case["denoised"], atol=1e-5)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_a_released_file_of_sida_is_read(name):
    """Its classes have other names, and are the same networks."""
    path = FIXTURES / f"sida_{name}.pkl"
    assert b"EXECUTED" in path.read_bytes(), "the fixture is no trap any more"
    snapshot = read_snapshot(path)
    assert snapshot.network.config.architecture == name
    assert snapshot.class_name.endswith("UNet_EncoderDecoder")
    assert not snapshot.from_training
    with np.load(FIXTURES / f"sida_{name}.npz") as case:
        x, sigma, labels = (torch.from_numpy(case[key]) for key in ("x", "sigma", "labels"))
        with torch.no_grad():
            denoised = snapshot.network(x, sigma, labels)
        np.testing.assert_allclose(denoised, case["denoised"], rtol=0, atol=1e-5)


def test_what_the_file_says_of_itself_is_kept():
    snapshot = read_snapshot(FIXTURES / "ncsnpp.pkl")
    assert snapshot.class_name == "SongUNet"
    assert snapshot.from_training
    assert snapshot.arguments["resample_filter"] == (1, 3, 3, 1)


def test_a_file_written_again_is_the_same_network():
    """What the following tests change, they change in this."""
    again = outcome_of(put_together(take_apart()))
    for name, tensor in load_network(FIXTURES / "ncsnpp.pkl").state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize(
    "function",
    [
        os.system, eval, exec, getattr, __import__, open, compile, print, pickle.loads,
        torch.load, torch.hub.load, torch.serialization.load, torch.jit.load, np.load,
        type, object, bytearray, set, io.BytesIO, os.path.join, np.frombuffer,
    ],
    ids=lambda function: f"{function.__module__}.{function.__qualname__}",
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_function_can_be_called(function, protocol):
    for content in (Calls(function, "touch EXECUTED"), {"ema": Calls(function, "EXECUTED", "w")}):
        said = refused(pickle.dumps(content, protocol))
        refusals = ("it names ", "uses the opcode", "'builtins.getattr' for another attribute")
        assert any(refusal in said for refusal in refusals)


def test_neither_can_code_or_attributes():
    for path in (
        "types.CodeType", "types.FunctionType", "operator.attrgetter", "functools.partial",
        "numpy.core.multiarray.fromfile", "torch._utils._rebuild_tensor", "builtins.setattr",
        "torch.nn.modules.container.ModuleDict.__init__", "collections.OrderedDict.fromkeys",
        "torch.storage._load_from_bytes.__globals__", "torch_utils.persistence.import_hook",
        "torch_utils.persistence._src_to_module", "copyreg._reconstructor",
    ):  # fmt: skip
        content = take_apart()
        content["loss_fn"] = Node(path, ("touch EXECUTED",))
        assert f"it names '{path}', which no network needs" in refused(put_together(content))


def test_a_storage_is_no_way_around():
    gadget = pickle.dumps(Calls(os.system, "touch EXECUTED"), 2)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", gadget)
        archive.writestr("archive/data/0", bytes(50_000_000))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    good = tensor_of(take_apart(), "map_layer0", "weight")[0].args[0].args[0].args[0]
    foreign = good.replace(b"ctorch\nFloatStorage\n", b"cos\nsystem\n")
    for blob, said in (
        (gadget, "it names 'posix.system'"),
        (foreign, "it names 'os.system'"),
        (zipped.getvalue(), "has its storage in a zip"),
        (tar.getvalue(), "it is damaged or no pickle"),
        (b"", "it is damaged or no pickle"),
        (good + gadget, "has a storage of another length than it says"),
    ):
        content = take_apart()
        tensor, put = tensor_of(content, "map_layer0", "weight")
        size, stride = tensor.args[0].args[2:4]
        put(parameter(Node("torch.storage._load_from_bytes", (blob,)), size, stride))
        assert said in refused(put_together(content)), said


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"Pwhich\n", b"Nq\x00Q",
        b"(ios\nsystem\n", b"(cos\nsystem\no", b"N)}\x92", b"NN2", b"N0",
        b"\x8b\x04\x00\x00\x00abcd",
        b"\x96\x01\x00\x00\x00\x00\x00\x00\x00x", b"N\x98", b"\x97", b"I1\n", b"L1L\n", b"F1\n",
        b"S'x'\n", b"Vx\n", b"(l", b"(d", b"(1", b"(\x91", b"g0\n", b"Np0\n",
    ],
)  # fmt: skip
def test_only_opcodes_of_released_files_are_read(opcodes):
    said = refused(b"\x80\x04" + opcodes + b".")
    assert "it uses the opcode" in said or "it names" in said


@pytest.mark.parametrize(
    "content",
    [
        b"", b".", b"\x80", b"\x80\x04", b"\x80\x04.", b"\x80\x04N", b"\x80\x04NN.", b"\x80\x04(.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x80\x04B\xff\xff\xff\xff.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", b"\x80\x04j\xff\xff\xff\xff.",
        b"\x80\x04N\x85\x87.", b"\x80\x04}(Nu.", b"\x80\x04}(NNu.", b"\x80\x04]N\x93.",
        b"\x80\x04NR.", b"\x80\x04N)R.", b"\x80\x04Nb.", b"\x80\x04}}b.", b"\x80\x04NNs.",
        b"\x80\x04NNa.", b"\x80\x04](u.", b"\x80\x04\x8f(]\x90.", b"\x80\x04(((.", b"hello", b"PK",
        b"\x80\x04X\x01\x00\x00\x00\xff.", b"I" + b"9" * 100_000 + b"\n.", bytes(1000),
    ],
)  # fmt: skip
def test_what_is_no_released_file_is_refused(content):
    assert "network.pkl is refused: it" in refused(content)


@pytest.mark.slow
def test_bombs_are_small():
    """A few bytes that ask for gigabytes, or for hours, get neither."""
    deep = b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b"."
    assert "more than 400000 steps" in refused(deep)
    nested = b"\x80\x04" + b"N" + b"\x85" * 300_000 + b"."
    assert "holds no 'ema'" in refused(nested)
    level = b"".join(b"](" + b"h%c" % i * 9 + b"e\x94" for i in range(40))  # ninefold each
    laughs = b"\x80\x04(]\x94" + level + b"t."
    assert "holds no 'ema'" in refused(laughs)
    assert "holds no 'ema'" in refused(b"\x80\x04Nr\xff\xff\xff\xff.")  # a memo of 2^32 entries
    big = [(2**61 - 1) * index for index in range(1, 20_000)]  # all of one hash
    collisions = b"".join(b"\x8a\x0b" + key.to_bytes(11, "little") + b"N" for key in big)
    began = time.process_time()
    assert "holds no 'ema'" in refused(b"\x80\x04}(" + collisions + b"u.")
    assert time.process_time() - began < 5
    assert "a key that is no text" in refused(b"\x80\x04}(NNu.")


EMPTY = {"_parameters": {}, "_buffers": {}, "_modules": {}}
PLACE, ANOTHER = Name("place.one"), Name("place.two")
PUT, GET = b"r\x00\x00\x01\x00", b"j\x00\x00\x01\x00"


def test_a_module_within_itself_is_refused():
    content = take_apart()
    model_of(content)["state"]["_modules"]["map_noise"] = PLACE
    made = b"ctorch.nn.modules.container\nModuleDict\n)\x81" + PUT
    state = put_together(EMPTY | {"_modules": {"again": ANOTHER}})[2:-1]
    itself = made + state.replace(b"cplace\ntwo\n", GET) + b"b"
    said = refused(put_together(content).replace(b"cplace\none\n", itself))
    assert "it has a module within itself, in two places or too deep" in said


def test_a_module_in_two_places_is_refused():
    """Ten levels of two places each would be a thousand modules, and forty a trillion."""
    content = take_apart()
    model_of(content)["state"]["_modules"] |= {"one": PLACE, "two": ANOTHER}
    module = put_together(Node(MODULE_DICT, (), EMPTY))[2:-1]
    pickled = put_together(content).replace(b"cplace\none\n", module + PUT)
    said = refused(pickled.replace(b"cplace\ntwo\n", GET))
    assert "it has a module within itself, in two places or too deep" in said


def test_names_and_numbers_of_modules_are_bounded():
    """Names add up along the way down, and a dict in many modules is walked in each."""
    content = take_apart()
    model_of(content)["state"]["_modules"]["x" * 65] = Node(MODULE_DICT, (), EMPTY)
    assert "has no _modules, or far too many" in refused(put_together(content))
    content = take_apart()
    model_of(content)["state"]["_buffers"] = {str(index): None for index in range(257)}
    assert "has no _buffers, or far too many" in refused(put_together(content))
    nested = Node(MODULE_DICT, (), EMPTY)
    for _ in range(10):
        nested = Node(MODULE_DICT, (), EMPTY | {"_modules": {"x": nested}})
    content = take_apart()
    model_of(content)["state"]["_modules"]["x"] = nested
    assert "within itself, in two places or too deep" in refused(put_together(content))


def test_values_within_themselves_are_refused_or_ignored():
    assert "a module that is none" in refused(b"\x80\x04}\x94\x8c\x03emah\x00s.")
    for kwargs in (b"}\x94\x8c\x01xh\x00s", b"]\x94h\x00a"):
        content = take_apart() | {"dataset_kwargs": PLACE}
        pickled = put_together(content).replace(
            b"cplace\none\n", kwargs.replace(b"\x94", PUT).replace(b"h\x00", GET)
        )
        assert isinstance(outcome_of(pickled), Denoiser)
        content = take_apart()
        model_of(content)["state"]["_init_kwargs"]["channel_mult"] = PLACE
        pickled = put_together(content).replace(
            b"cplace\none\n", kwargs.replace(b"\x94", PUT).replace(b"h\x00", GET)
        )
        assert "channel_mult" in refused(pickled)


def test_only_preconditioning_and_networks_of_edm_are_read():
    names = ("VPPrecond", "VEPrecond", "iDDPMPrecond", "Precond2", "a\nb" * 100)
    sida = ("VPPrecond_EncoderDecoder", "EDMPrecond_EncoderDecoder_EncoderDecoder")
    for name in (*names, *sida, "EDM_3_Precond_Generator"):
        content = take_apart()
        content["ema"].args[0]["class_name"] = name
        said = refused(put_together(content))
        assert f"its network is a {name[:64]!r}: only EDMPrecond can be read" in said
    for name in ("UNet", "DhariwalUNet2", "UNet2_EncoderDecoder"):
        content = take_apart()
        model_of(content)["class_name"] = name
        plain = name.removesuffix("_EncoderDecoder")
        assert f"its raw network is a {plain!r}" in refused(put_together(content))
    content = take_apart()
    model_of(content)["state"]["_modules"]["map_noise"].args[0]["class_name"] = "MPFourier"
    assert "its 'model.map_noise' is a 'MPFourier'" in refused(put_together(content))


def test_a_dict_of_the_trainers_own_kind_is_read():
    pickled = put_together(take_apart() | {"dataset_kwargs": Name("easy")})
    easy = b"cdnnlib.util\nEasyDict\n)\x81(\x8c\x04pathNu"
    assert isinstance(outcome_of(pickled.replace(b"c\neasy\n", easy)), Denoiser)


def change(content, where, name, value):
    if where == "meta":
        content["ema"].args[0][name] = value
    elif where == "outer":
        state_of(content["ema"])[name] = value
    elif where == "arguments":
        model_of(content)["state"]["_init_kwargs"][name] = value


@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        ("meta", "version", 5, "no class of version 6"),
        ("meta", "type", "module", "no class of version 6"),
        ("meta", "state", None, "without a class or a state"),
        ("outer", "sigma_data", 1.0, "sigma_data is not 0.5"),
        ("outer", "img_resolution", 32, "differ in img_resolution"),
        ("outer", "label_dim", 3, "differ in label_dim"),
        ("outer", "_parameters", {"x": 1}, "more or less than a 'model'"),
        ("outer", "_modules", {}, "more or less than a 'model'"),
        ("arguments", "embedding_type", "positional", "neither DDPM++ nor NCSN++"),
        ("arguments", "decoder_type", "skip", "neither DDPM++ nor NCSN++"),
        ("arguments", "channel_mult_emb", 2, "channel_mult_emb is not 4"),
        ("arguments", "label_dropout", 0.1, "label_dropout is not 0"),
        ("arguments", "out_channels", 3, "other channels than it takes"),
        ("arguments", "num_blocks", 10**9, "num_blocks is missing, or not within 0 to 16"),
        ("arguments", "model_channels", 2**400, "model_channels is missing, or not within"),
        ("arguments", "model_channels", 4096, "is not of the shape"),
        ("arguments", "channel_mult", 2, "channel_mult is no list"),
        ("arguments", "channel_mult", [1] * 65, "channel_mult of its SongUNet is of a wrong type"),
        ("arguments", "channel_mult", [1] * 64, "cannot be halved 63 times"),
        ("arguments", "channel_mult", [1, 2, 2], "it lacks 'model.dec.4x4"),
        ("arguments", "num_blocks", 2, "it lacks 'model.dec.16x16_block2"),
        ("arguments", "attn_resolutions", [], "it holds an unknown 'model."),
        ("arguments", "img_resolution", 15, "cannot be halved"),
        ("arguments", "img_resolution", True, "img_resolution of its SongUNet is of a wrong type"),
        ("arguments", "dropout", float("nan"), "dropout"),
        ("arguments", "dropout", "0.1", "dropout"),
        ("arguments", "colour", "red", "unknown 'colour'"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(where, name, value, said):
    content = take_apart()
    change(content, where, name, value)
    assert said in refused(put_together(content))


def test_a_file_without_a_network_is_refused():
    for content in ({}, [], None, 5, {"net": take_apart()["ema"]}, {"model": {}}):
        assert "holds no 'ema'" in refused(put_together(content))
    for ema in (None, 5, "x", [], {}, Node(MODULE_DICT, ())):
        assert "it holds a module" in refused(put_together({"ema": ema}))


WEIGHT = torch.linspace(-1, 1, 16 * 32).reshape(32, 16)
SIZE, STRIDE = (32, 16), (16, 1)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (parameter(storage(WEIGHT), (2**20, 2**20), (0, 0)), "is not of the shape [32, 16]"),
        (parameter(storage(WEIGHT), (2**41, 1), (0, 0)), "a size and a stride that do not fit"),
        (parameter(storage(WEIGHT), SIZE, (0, 0)), "does not lie in its storage as a whole"),
        (parameter(storage(WEIGHT), SIZE, (1, 1)), "does not lie in its storage as a whole"),
        (parameter(storage(WEIGHT), SIZE, (16, 2)), "does not lie in its storage as a whole"),
        (parameter(storage(WEIGHT), SIZE, STRIDE, 1), "does not lie in its storage as a whole"),
        (parameter(storage(WEIGHT), SIZE, STRIDE, -1), "a size and a stride that do not fit"),
        (parameter(storage(WEIGHT), SIZE, (16,)), "a size and a stride that do not fit"),
        (parameter(storage(WEIGHT), list(SIZE), STRIDE), "has no size or stride"),
        (parameter(storage(WEIGHT), (32.0, 16), STRIDE), "has no storage, size or stride"),
        (parameter(storage(WEIGHT[:3]), SIZE, STRIDE), "does not lie in its storage as a whole"),
        (parameter(storage(WEIGHT / 0), SIZE, STRIDE), "holds NaN or infinity"),
        (parameter(storage(WEIGHT.sqrt()), SIZE, STRIDE), "holds NaN or infinity"),
        (parameter(storage(WEIGHT.double()), SIZE, STRIDE), "names 'torch.DoubleStorage'"),
        (parameter(storage(WEIGHT.long()), SIZE, STRIDE), "names 'torch.LongStorage'"),
        (
            parameter(storage(WEIGHT, zipped=True), SIZE, STRIDE),
            "has its storage in a zip",
        ),
        (parameter(Name("numpy.dtype"), SIZE, STRIDE), "has no storage"),
        (parameter(None, SIZE, STRIDE), "has no storage"),
        (WEIGHT.tolist(), "is no tensor"),
        ("text", "is no tensor"),
    ],
)
def test_a_tensor_that_lies_is_refused(node, said):
    content = take_apart()
    _, put = tensor_of(content, "map_layer0", "weight")
    put(node)
    message = refused(put_together(content))
    assert said in message
    assert "its 'model.map_layer0.weight'" in message


def test_a_storage_that_claims_more_than_it_has_is_refused():
    good = storage(WEIGHT).args[0]
    claim = b"M\x00\x02"  # 512 elements
    assert good.count(claim) == 1
    for more in (b"J\xff\xff\xff\x7f", b"\x8a\x06\x00\x00\x00\x00\x00\x01", b"\x8a\x01\xff"):
        content = take_apart()
        blob = good.replace(claim, more)
        node = Node("torch.storage._load_from_bytes", (blob,))
        tensor_of(content, "map_layer0", "weight")[1](parameter(node, SIZE, STRIDE))
        assert "another length than it says" in refused(put_together(content))


def test_other_layouts_and_half_precision_are_read():
    for tensor, size, stride in (
        (WEIGHT.T.contiguous(), SIZE, (1, 32)),
        (WEIGHT.half(), SIZE, STRIDE),
    ):
        content = take_apart()
        tensor_of(content, "map_layer0", "weight")[1](parameter(storage(tensor), size, stride))
        network = outcome_of(put_together(content))
        assert network.model.map_layer0.weight.dtype is torch.float32
        torch.testing.assert_close(network.model.map_layer0.weight.data, WEIGHT, rtol=0, atol=1e-3)


def test_missing_and_surplus_tensors_are_named():
    content = take_apart()
    state = model_of(content)["state"]
    state_of(state["_modules"]["map_layer0"])["_parameters"]["bias"] = None
    assert "it lacks 'model.map_layer0.bias' (1 are missing)" in refused(put_together(content))
    content = take_apart()
    weight, _ = tensor_of(content, "map_layer0", "weight")
    model_of(content)["state"]["_buffers"]["surplus"] = weight
    assert "it holds an unknown 'model.surplus' (1 are)" in refused(put_together(content))


def test_another_filter_is_refused():
    content = take_apart()
    path = ("enc", "8x8_down", "conv0", "resample_filter")
    _, put = tensor_of(content, *path, kind="_buffers")
    put(parameter(storage(torch.full((16,), 1 / 16)), (1, 1, 4, 4), (16, 16, 4, 1)))
    assert "conv0.resample_filter' is not the filter of ncsnpp" in refused(put_together(content))


def test_files_that_are_none(tmp_path):
    for path in (tmp_path / "missing.pkl", tmp_path):
        with pytest.raises(UserError, match="no network at"):
            load_network(path)
    whole = (FIXTURES / "ncsnpp.pkl").read_bytes()
    assert "goes on after its end" in refused(whole + b"\0")
    assert "damaged" in refused(whole[:-1])


def fuzz(path, seed, count, name="ncsnpp"):
    """Load `count` damaged files; return how many were read in spite of it."""
    rng = random.Random(seed)
    whole = (FIXTURES / f"{name}.pkl").read_bytes()
    boundaries = [position for _, _, position in pickletools.genops(whole)]
    tree = take_apart(name)
    read = 0
    for index in range(count):
        content = mutated_bytes(whole, boundaries, rng) if index % 2 else mutated_tree(tree, rng)
        began = time.process_time()
        read += isinstance(outcome(path, content), Denoiser)
        assert time.process_time() - began < 10
        assert not Path("EXECUTED").exists()
    return read


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("ncsnpp", 100), ("edm2", 30), ("sida_edm2", 30)])
def test_no_damage_does_anything_but_be_refused(tmp_path, name, count):
    """Raise `count` after changing distill/importing: 9,600 took nine minutes of one core."""
    read = fuzz(tmp_path / "network.pkl", seed=0, count=count, name=name)
    assert read > 0, "the damage is so great that it tests nothing"
