"""ONNX Runtime as a contestant: what its operators cover. Weights are constants, so that it may pack them."""

import os

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from worker import serve


def session(node, inputs, outputs, constants=()):
    """A model of one node."""
    kind = lambda x: TensorProto.FLOAT if x.dtype == np.float32 else TensorProto.INT32
    graph = helper.make_graph(
        [node],
        "case",
        [helper.make_tensor_value_info(name, kind(x), x.shape) for name, x in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(x), name) for name, x in constants],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = (
        int(os.environ["OMP_NUM_THREADS"]),
        1,
    )
    made = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding, values = made.io_binding(), {}
    for name, x in inputs.items():
        values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        binding.bind_ortvalue_input(name, values[name])

    def run(keep=values):  # the binding does not keep its inputs, and caches grow as outputs
        binding.clear_binding_outputs()
        for name in outputs:
            binding.bind_output(name)
        made.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    return run


def fp32_only(case):
    if case.text("precision") == "bf16" or case.text("cache") not in ("", "native"):
        raise NotImplementedError("fp32 only on a CPU")


def matmul(case):
    w = case.input("w", case["N"], case["K"]).T
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return (
        session(node, {"x": case.input("x", case["M"], case["K"])}, ["y"], [("w", w)]),
        lambda y: y.numpy(),
    )


def grouped(case, tokens, past):
    """The last `tokens` queries over a cache of `past` entries that the new ones are appended to."""
    H, G, K = case["H"], case["G"], case["K"]
    k, v = [case.input(name, past + tokens, G, K) for name in "kv"]
    cache = lambda x: np.ascontiguousarray(x[:past].transpose(1, 0, 2))[None]
    inputs = {
        "q": case.input("q", 1, tokens, H * K),
        "k": np.ascontiguousarray(k[past:]).reshape(1, tokens, G * K),
        "v": np.ascontiguousarray(v[past:]).reshape(1, tokens, G * K),
        "past_k": cache(k),
        "past_v": cache(v),
        "lengths": np.array([past + tokens - 1], np.int32),
        "total": np.array(past + tokens, np.int32),
    }
    window = int(case.text("window", "-1"))
    node = helper.make_node(
        "GroupQueryAttention",
        list(inputs),
        ["y", "keys", "values"],
        domain="com.microsoft",
        num_heads=H,
        kv_num_heads=G,
        local_window_size=window,
    )
    return session(node, inputs, ["y", "keys", "values"]), lambda y: y.numpy()


def attention(case):
    if case.text("score"):
        raise NotImplementedError("plain scores alone")
    if case.text("window"):
        return grouped(case, case["T"], 0)
    H, K = case["H"], case["K"]
    inputs = {name: case.input(name, 1, case["T"], H * K) for name in "qkv"}
    node = helper.make_node(
        "MultiHeadAttention",
        list(inputs),
        ["y"],
        domain="com.microsoft",
        num_heads=H,
        unidirectional=1,
    )
    return session(node, inputs, ["y"]), lambda y: y.numpy()


def decode(case):
    return grouped(case, 1, case["L"] - 1)


def short_conv(case):
    T, D, W = case["T"], case["D"], case["W"]
    x = np.ascontiguousarray(case.input("x", T, D).T)[None]
    taps = case.input("taps", W, D).T[:, None]
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=D, pads=[W - 1, 0], kernel_shape=[W])
    return session(node, {"x": x}, ["y"], [("w", taps)]), lambda y: y.numpy()[0].T


def prepare(case):
    fp32_only(case)
    op = case.text("op")
    if op not in globals():
        raise NotImplementedError(op)
    return globals()[op](case)


onnxruntime.set_default_logger_severity(4)
serve(prepare, f"ONNX Runtime {onnxruntime.__version__}")
