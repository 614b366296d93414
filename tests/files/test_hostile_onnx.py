"""ONNX files of strangers: what could fill the memory or never end is refused before it runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnsn_cli.deploy.export import exported_metadata
from cnsn_cli.files.checkpoint import load
from cnsn_cli.files.metadata import metadata_in
from cnsn_cli.files.onnx_limits import check_limits
from tests.commands.test_cli import one_line

HEAD = "hostile (float[N, 3, 32, 32] images) => (float[N, 2] logits)"
# From images to logits, and then something more that the logits depend on.
MEANS = """
    means = ReduceMean<axes = [2, 3], keepdims = 0>(images)
    some = Gather<axis = 1>(means, pick)
"""
PICK = "int64[2] pick = {0, 1}"
LOOP = """
    many = Constant<value = int64 {4611686018427387904}>()
    yes = Constant<value = bool {1}>()
    logits = Loop<body = turn (int64 i, bool c, float[M, 2] before) => (bool d, float[M, 2] after)
        {d = Identity(c) after = Neg(before)}>(many, yes, some)
"""
SCAN = """
    logits, all = Scan<num_scan_inputs = 1,
        body = turn (float[M, 2] a, float[2] row) => (float[M, 2] b, float[2] r)
        {b = Identity(a) r = Identity(row)}>(some, means)
"""
BIG = 2**40


@pytest.fixture
def ours(checkpoint):
    return exported_metadata(metadata_in(checkpoint), load(checkpoint).base, "").to_json()


@pytest.fixture
def write(ours, tmp_path):
    """Writes a graph, or a model, as a file with metadata of cnsn."""

    def written(graph: onnx.GraphProto, **more: object) -> Path:
        path = tmp_path / "hostile.onnx"
        opset = [
            helper.make_opsetid("", 17),
            helper.make_opsetid("com.microsoft", 1),
            helper.make_opsetid("f", 1),
        ]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9, **more)
        helper.set_model_props(model, {"cnsn": ours})
        path.write_bytes(model.SerializeToString())
        return path

    return written


def graph(body: str, values: str = PICK) -> onnx.GraphProto:
    return onnx.parser.parse_graph(f"{HEAD} <{values}> {{ {MEANS} {body} }}")


def nested(inner: str) -> str:
    """The operators `inner` in a branch of an If, whose condition is known only when it runs."""
    return f"""
        sum = ReduceSum<keepdims = 0>(images)
        zero = Constant<value = float {{0}}>()
        is = Greater(sum, zero)
        logits = If<then_branch = a () => (float[M, 2] x) {{ {inner.replace("logits", "x")} }},
                    else_branch = b () => (float[M, 2] y) {{ y = Neg(some) }}>(is)
    """


REFUSED = {
    "loop": (LOOP, "it repeats operators (Loop), and may never end"),
    "loop in an If": (nested(LOOP), "it repeats operators (Loop), and may never end"),
    "loop in an If in an If": (
        nested(nested(LOOP).replace("a ()", "c ()").replace("b ()", "d ()")),
        "it repeats operators (Loop), and may never end",
    ),
    "scan": (SCAN, "it repeats operators (Scan), and may never end"),
    "contrib": (
        "logits = com.microsoft.Gelu(some)",
        "operator com.microsoft.Gelu is not one of the standard operators",
    ),
    "constant": (
        f"""
        shape = Constant<value = int64[2] {{{BIG}, 2}}>()
        large = ConstantOfShape(shape)
        sum = ReduceSum<keepdims = 0>(large)
        logits = Add(some, sum)
        """,
        f"tensor 'large' has {2 * BIG:,} values for an image, more than 268,435,456",
    ),
    "expanded input": (
        f"""
        shape = Constant<value = int64[3] {{{BIG}, 1, 2}}>()
        large = Expand(some, shape)
        logits = ReduceMean<axes = [0], keepdims = 0>(large)
        """,
        f"tensor 'large' has {2 * BIG:,} values for an image, more than 268,435,456",
    ),
    "constant in a branch": (
        nested(f"""
        shape = Constant<value = int64[2] {{{BIG}, 2}}>()
        large = ConstantOfShape(shape)
        sum = ReduceSum<keepdims = 0>(large)
        logits = Add(some, sum)
        """),
        f"tensor 'large' has {2 * BIG:,} values for an image, more than 268,435,456",
    ),
    "hidden size": (
        """
        two = Constant<value = float[1] {40}>()
        power = Exp(two)
        size = Cast<to = 7>(power)
        large = ConstantOfShape(size)
        sum = ReduceSum<keepdims = 0>(large)
        logits = Add(some, sum)
        """,
        "the size of 'large', which ConstantOfShape returns, is unknown",
    ),
    "growing text": (
        """
        text = Constant<value_string = "aaaaaaaa">()
        double = StringConcat(text, text)
        logits = Neg(some)
        """,
        "the size of 'text', which Constant returns, is unknown",
    ),
    "many constants": (
        "".join(
            f"""
            shape{i} = Constant<value = int64[2] {{100000000, 2}}>()
            large{i} = ConstantOfShape(shape{i})
            """
            for i in range(3)
        )
        + "logits = Neg(some)",
        "its constants have more than 536,870,912 values",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_graph_may_not_ask_for(cnsn, write, image_folder, case):
    body, reason = REFUSED[case]
    path = write(graph(body))
    for words in (("eval", path), ("predict", path, image_folder / "test"), ("bench", path)):
        assert one_line(cnsn(*words)) == f"{path} is not run: {reason}"
    result = cnsn("info", path)  # reads metadata alone
    assert result.code == 0
    assert "vgg11" in result.out


def test_what_a_file_says_of_a_size_is_not_believed(cnsn, write):
    """The file says that `large` has one value, and that the logits come from it."""
    body = (
        f"shape = Constant<value = int64[2] {{{BIG}, 2}}>() large = ConstantOfShape(shape) logits = Neg(some)"
    )
    hostile = graph(body)
    hostile.value_info.append(helper.make_tensor_value_info("large", TensorProto.FLOAT, [1]))
    path = write(hostile)
    assert f"tensor 'large' has {2 * BIG:,} values" in one_line(cnsn("eval", path))


def test_tensors_of_a_file(cnsn, write, tmp_path):
    def refused(tensor: TensorProto) -> str:
        hostile = graph("logits = Neg(some)")
        hostile.initializer.append(tensor)
        path = write(hostile)
        return one_line(cnsn("eval", path)).removeprefix(f"{path} is not run: ")

    secret = numpy_helper.from_array(np.ones(4, np.float32), "secret")
    onnx.external_data_helper.set_external_data(secret, "/etc/passwd")
    assert refused(secret) == "tensor 'secret' is in another file"
    huge = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[BIG, BIG])
    assert refused(huge).startswith(f"tensor 'huge' has {BIG * BIG:,} values")
    hostile = graph("logits = Neg(some)")
    hostile.sparse_initializer.add().dims.extend([BIG, BIG])
    assert one_line(cnsn("eval", write(hostile))).endswith("it has sparse tensors")


def test_operators_that_the_file_defines(cnsn, write):
    """Each calls the one before twice: 40 of them call the first one 2**40 times."""
    function = helper.make_function("f", "twice", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [])
    path = write(graph("logits = Neg(some)"), functions=[function])
    assert one_line(cnsn("eval", path)) == f"{path} is not run: it defines operators of its own"


def test_info_reads_metadata_alone(write, ours, tmp_path):
    """1 GiB of weights, which take no space on the disk, and no library that could open them."""
    path = tmp_path / "large.onnx"
    properties = onnx.ModelProto()
    helper.set_model_props(properties, {"author": "me", "cnsn": ours})
    with path.open("wb") as file:
        file.write(b"\x3a\x80\x80\x80\x80\x04")  # the graph, field 7 with 2**30 bytes
        file.seek(2**30, os.SEEK_CUR)
        file.write(properties.SerializeToString())
    code = """
import resource, sys
sys.modules["onnx"] = sys.modules["onnxruntime"] = None
from cnsn_cli.main import app
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
try:
    app()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code, "info", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "vgg11:width=0.0625" in done.stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x72\xff\x01abc", "it is truncated"),
        (b"\x72" + b"\xff" * 11, "it is no protobuf message"),
        (b"\x77", "it is no protobuf message"),
        (
            b"\x72\x04\x0a\x02\xff\xfe",
            "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
        (b"\x72\x80\x80\x80\x02" + bytes(4 * 2**20) + b"\x72\x00", "it is no protobuf message"),
    ],
)
def test_broken_messages_are_refused(cnsn, tmp_path, content, reason):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    for command in ("info", "eval"):
        assert one_line(cnsn(command, path)) == f"{path} is no ONNX file that can be run: {reason}"


def test_exports_of_today_and_of_before_pass(cnsn, checkpoint, tmp_path):
    """Also with indices up to the number of images, as torch writes them for swin_t."""
    assert cnsn("export", checkpoint, "--to", "onnx", "-o", tmp_path / "a.onnx").code == 0
    ranged = graph("""
        shape = Shape<start = 0, end = 1>(images)
        count = Squeeze(shape)
        zero = Constant<value = int64 {0}>()
        one = Constant<value = int64 {1}>()
        rows = Range(zero, count, one)
        logits = Gather(some, rows)
    """)
    model = helper.make_model(ranged, opset_imports=[helper.make_opsetid("", 17)])
    check_limits(Path("ranged"), model.SerializeToString())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_long_computation(write, number):
    """ONNX Runtime multiplies large constants for a minute while it opens the file."""
    size = "shape = Constant<value = int64[2] {4000, 4000}>() p0 = ConstantOfShape(shape)"
    products = "".join(f"p{i + 1} = MatMul(p{i}, p0) " for i in range(30))
    path = write(graph(f"{size} {products} sum = ReduceSum<keepdims = 0>(p30) logits = Add(some, sum)"))
    words = [sys.executable, "-m", "cnsn_cli", "bench", path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while b"onnxruntime_pybind11" not in Path(f"/proc/{process.pid}/maps").read_bytes():
            time.sleep(0.1)
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(5) == -number
