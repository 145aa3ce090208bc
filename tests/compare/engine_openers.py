"""How engines.py opens a graph in each engine: without torch, which load_alone() must not count.

Each function takes the path of a graph and returns a function that draws one feed, a mapping from
the name of an input to its array.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

THREADS = 2


def ort(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)[0]


def as_served(path):
    """Two batches at a time, a thread each, as the gateway computes them; one call draws both."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    pool = ThreadPoolExecutor(THREADS)

    def draw(feed):
        return list(pool.map(lambda _: session.run(None, feed)[0], range(THREADS)))

    draw.batches = THREADS
    return draw


def openvino(path, hint="f32", streams=1):
    """One batch at a time, or as many as there are streams; one call draws them all."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": THREADS}
    compiled = ov.Core().compile_model(path, "CPU", settings | {"NUM_STREAMS": streams})
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def one(request, feed):
        return np.array(request.infer(feed, share_inputs=True)["images"])

    if streams == 1:
        return lambda feed: one(requests[0], feed)
    pool = ThreadPoolExecutor(streams)

    def draw(feed):
        return list(pool.map(lambda request: one(request, feed), requests))

    draw.batches = streams
    return draw
