"""What config.pbtxt tells Triton, read by Triton's own schema: of each graph, on each machine."""

import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from distill.errors import UserError
from distill.export.publish import publish
from distill.export.tensorrt import Builder, build_plan
from distill.export.triton import INSTANCES, MAX_BATCH_SIZE, TritonOptions, triton_config
from service.bundle import PLAN, Tolerance, load_bundle, load_manifest, triton_graph, variant
from tests.bundles import MIX, STYLE, write_bundle
from tests.distill.export.test_export import network, save_generator

FLOAT16 = "model.float16.onnx"
VARIANTS = {
    "float32": {},
    "float16": {"graph": FLOAT16},
    "tensorrt": {"tensorrt": True},
    "tensorrt-float16": {"graph": FLOAT16, "tensorrt": True},
    "plan": {"graph": PLAN},
}


def parsed(text):
    """The configuration as Triton reads it; an error if it does not know a field."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def accelerators(config):
    """The options of each, by name, in their order."""
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return {one.name: dict(one.parameters) for one in found}


@pytest.fixture
def manifest(tmp_path):
    folder = write_bundle(
        tmp_path, graphs=[FLOAT16], extra=[STYLE, MIX], latent_shape=(4, 8, 8), resolution=16
    )
    return load_manifest(folder)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_triton_reads_every_field_of_it(manifest, options):
    config = parsed(triton_config(manifest, **options))
    assert [(one.name, list(one.dims)) for one in config.input] == [
        ("latents", [4, 8, 8]), ("class_labels", [1]), ("style", [1]), ("mix", [2]),
    ]  # fmt: skip
    assert (config.output[0].name, list(config.output[0].dims)) == ("images", [16, 16, 1])
    assert [one.batch_size for one in config.model_warmup] == [1, MAX_BATCH_SIZE]
    assert config.default_model_filename == options.get("graph", "")
    (instances,) = config.instance_group
    assert instances.count == INSTANCES
    assert not instances.gpus, "on each card that there is, whatever their number"


@pytest.mark.parametrize("options", [VARIANTS["float32"], VARIANTS["float16"]])
def test_a_gpu_computes_in_the_precision_of_the_graph_without_a_search(manifest, options):
    """By the names and values of ONNX Runtime's provider, as in the gateway's own engine."""
    config = parsed(triton_config(manifest, **options))
    assert config.backend == "onnxruntime"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO
    cuda = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert accelerators(config) == {"cuda": cuda}
    # The backend prefers this one, and takes EXHAUSTIVE if it finds other parameters only.
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"
    assert config.parameters["intra_op_thread_count"].string_value == "1"


@pytest.mark.parametrize(("name", "mode"), [("tensorrt", "FP32"), ("tensorrt-float16", "FP16")])
def test_tensorrt_builds_once_for_every_batch_and_input_and_keeps_it(manifest, name, mode):
    found = accelerators(parsed(triton_config(manifest, **VARIANTS[name])))
    assert list(found) == ["tensorrt", "cuda"], "what TensorRT cannot compute is CUDA's"
    options = found["tensorrt"]
    assert options["precision_mode"] == mode
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    shape = "latents:{0}x4x8x8,class_labels:{0},style:{0},mix:{0}x2"
    for which, batch in (("min", 1), ("opt", 8), ("max", MAX_BATCH_SIZE)):
        assert options[f"trt_profile_{which}_shapes"] == shape.format(batch)


def test_no_two_graphs_share_an_engine_in_the_cache(tmp_path):
    prefixes = set()
    for name, options in (("a", {}), ("a", {"version": 2}), ("b", {}), ("c", {"resolution": 16})):
        folder = write_bundle(tmp_path / str(len(prefixes)), name, graphs=[FLOAT16], **options)
        for graph in ("model.onnx", FLOAT16):
            config = triton_config(load_manifest(folder), graph=graph, tensorrt=True)
            prefixes.add(accelerators(parsed(config))["tensorrt"]["trt_engine_cache_prefix"])
    assert len(prefixes) == 8


@pytest.mark.slow
def test_a_graph_is_named_by_its_content(tmp_path, export_once):
    """Two versions of one model share the rest of what the cache goes by."""
    names = []
    for scale in (2.5, 2.6):
        export_once(network(3), scale, tmp_path / "model.onnx")
        names.append(onnx.load(tmp_path / "model.onnx").graph.name)
    assert len(set(names)) == 2


def test_a_plan_is_served_by_tensorrt_on_gpus_with_a_cuda_graph_for_each_usual_batch(manifest):
    config = parsed(triton_config(manifest, graph=PLAN))
    assert (config.backend, config.default_model_filename) == ("tensorrt", PLAN)
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert not config.parameters, "they are of the other backend"
    assert not accelerators(config)
    cuda = config.optimization.cuda
    assert cuda.graphs
    assert {1, 2, 4, 8, 16, 32} <= {one.batch_size for one in cuda.graph_spec}
    assert max(one.batch_size for one in cuda.graph_spec) == MAX_BATCH_SIZE


def group_normalisation(path, groups):
    """A graph that consists of one."""
    values = [helper.make_tensor(name, TensorProto.FLOAT, [4], [1.0] * 4) for name in ("s", "b")]
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=groups)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4, 8, 8]) for n in "xy")
    graph = helper.make_graph([node], "one", [x], [y], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


@pytest.mark.slow
def test_no_plan_is_built_of_a_normalisation_that_tensorrt_computes_as_another(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    plan = tmp_path / "model.plan"
    good = group_normalisation(tmp_path / "two.onnx", 2)
    build_plan(good, plan, Builder.rtx, capability="SM89")
    assert plan.exists()
    bad = group_normalisation(tmp_path / "one.onnx", 1)
    with pytest.raises(UserError, match=r"one\.onnx has a normalisation over one group") as refused:
        build_plan(bad, tmp_path / "other.plan", Builder.rtx, capability="SM89")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "other.plan").exists()


@pytest.mark.parametrize("by", ["plan", "accelerator"])
def test_nothing_is_published_for_tensorrt_that_it_computes_as_another(tmp_path, monkeypatch, by):
    generator = save_generator(tmp_path / "generator.safetensors")
    plan = tmp_path / "built.plan"
    plan.write_bytes(b"for one kind of GPU")

    def export(_network, _sigma_init, path, *_options, **_more):
        path.parent.mkdir(parents=True, exist_ok=True)
        group_normalisation(path, 1)

    monkeypatch.setattr("distill.export.publish.export_onnx", export)
    triton = TritonOptions(plan=plan) if by == "plan" else TritonOptions(tensorrt=True)
    with pytest.raises(UserError, match=r"model\.onnx has a normalisation over one group"):
        publish(generator, None, "x", "", "MIT", tmp_path / "models", triton=triton)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.fixture
def loose(monkeypatch):
    """Random weights amplify what trained ones do not, and whether they do is not the question."""
    bounds = Tolerance(max_difference=255, max_differing_share=1, max_distance_change=1)
    tolerances = dict.fromkeys(["float32", "float16"], bounds)
    monkeypatch.setattr("distill.export.gate.TOLERANCES", tolerances)


@pytest.mark.slow
@pytest.mark.usefixtures("loose")
def test_a_plan_and_float16_are_published_for_triton(tmp_path):
    """And the version before stays only where Triton can serve both by one configuration."""
    generator = save_generator(tmp_path / "generator.safetensors")
    models, plan = tmp_path / "models", tmp_path / "built.plan"
    plan.write_bytes(b"for one kind of GPU")

    def published(*, precision="float32", **options):
        triton = TritonOptions(precision, **options)
        folder = publish(generator, None, "letters", "", "MIT", models, triton=triton)
        return folder, load_bundle(folder).manifest

    folder, manifest = published(precision="float16")
    assert triton_graph(folder, manifest) == FLOAT16
    assert manifest.graphs[FLOAT16].precision == "float16"
    folder, manifest = published(precision="float16", tensorrt=True)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["1", "2"]
    config = parsed((folder / "config.pbtxt").read_text())
    assert accelerators(config)["tensorrt"]["precision_mode"] == "FP16"

    folder, manifest = published(precision="float16", plan=plan)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["3"]
    assert triton_graph(folder, manifest) == PLAN
    assert (folder / "3" / PLAN).read_bytes() == plan.read_bytes()
    assert f"3/{PLAN}" in manifest.files
    entry, source = manifest.graphs[PLAN], manifest.graphs[FLOAT16]
    assert (entry.precision, entry.bounds) == ("float16", source.bounds)
    assert FLOAT16 in entry.measured.engine, "nobody has run the plan, and it says so"
    assert variant(PLAN, entry.precision) == "float16-plan"


def test_options_for_triton_that_cannot_be_are_refused_before_anything_is_exported(tmp_path):
    generator = save_generator(tmp_path / "generator.safetensors")
    plan = tmp_path / "missing.plan"
    for options, said in (
        (TritonOptions(plan=plan), r"missing\.plan: there is no such file"),
        (TritonOptions(plan=plan, tensorrt=True), "a plan is computed by TensorRT as it is"),
    ):
        with pytest.raises(UserError, match=said):
            publish(generator, None, "x", "", "MIT", tmp_path / "models", triton=options)
    assert not (tmp_path / "models").exists()
