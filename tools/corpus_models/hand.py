"""Models made node by node: what the format allows and exporters seldom write."""
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper

HAND = "onnx.helper"
FLOAT = TensorProto.FLOAT


class Graph:
    """Nodes and initializers in the making; each method returns the name of its output."""

    def __init__(self, seed, dtype=np.float32, prefix=""):
        self.rng, self.dtype, self.prefix = np.random.default_rng(seed), dtype, prefix
        self.nodes, self.stored, self.count = [], [], 0

    def node(self, op, inputs, out=None, **attributes):
        self.count += 1
        out = out or f"{self.prefix}v{self.count}"
        name = attributes.pop("node_name", f"{op}_{self.count}")
        self.nodes.append(helper.make_node(op, inputs, [out], name, **attributes))
        return out

    def weight(self, shape, name=None, gain=1.0):
        """A kernel of low rank plus noise, as an initializer."""
        self.count += 1
        name = name or f"{self.prefix}w{self.count}"
        self.stored.append(numpy_helper.from_array(self.values(shape, gain), name))
        return name

    def values(self, shape, gain=1.0):
        out, rest = shape[0], int(np.prod(shape[1:]))
        rank = max(1, min(out, rest) // 4)
        low = self.rng.standard_normal((out, rank)) @ self.rng.standard_normal((rank, rest)) / np.sqrt(rank)
        noisy = low + 0.3 * self.rng.standard_normal((out, rest))
        return (gain * noisy * np.sqrt(1.6 / rest)).reshape(shape).astype(self.dtype)

    def vector(self, values, name=None):
        self.count += 1
        name = name or f"{self.prefix}b{self.count}"
        self.stored.append(numpy_helper.from_array(np.asarray(values).astype(self.dtype), name))
        return name

    def conv(self, x, shape, bias=True, **attributes):
        read = [x, self.weight(shape)]
        if bias:
            read.append(self.vector(self.rng.normal(0, 0.05, shape[0])))
        size = shape[2:]
        given = {"kernel_shape": size, "pads": [k // 2 for k in size] * 2} | attributes
        return self.node("Conv", read, **{k: v for k, v in given.items() if v is not None})

    def relu(self, x):
        return self.node("Relu", [x])

    def norm(self, x, channels):
        draw = self.rng.uniform
        read = [x, self.vector(draw(0.7, 1.3, channels)), self.vector(draw(-0.1, 0.1, channels)),
                self.vector(draw(-0.1, 0.1, channels)), self.vector(draw(0.6, 1.4, channels))]
        return self.node("BatchNormalization", read)

    def residual(self, x, channels, blocks=2):
        for _ in range(blocks):
            y = self.conv(self.relu(self.conv(x, [channels, channels, 3, 3])), [channels, channels, 3, 3], gain=None)
            x = self.relu(self.node("Add", [x, y]))
        return x

    def model(self, x, outputs, opset=17, ir=8, functions=(), imports=(), extra=(), dtype=FLOAT):
        graph = helper.make_graph(self.nodes, "hand", [helper.make_tensor_value_info("x", dtype, x), *extra],
                                  [helper.make_tensor_value_info(o, dtype, None) for o in outputs], self.stored)
        domains = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in imports)]
        model = helper.make_model(graph, opset_imports=domains, functions=list(functions))
        model.ir_version = ir
        return with_shapes(model)


def with_shapes(model):
    """Shapes of the outputs as onnx infers them, of four open axes where it cannot."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = {o.name: o for o in onnx.shape_inference.infer_shapes(bare).graph.output}
    for value in model.graph.output:
        value.type.tensor_type.shape.SetInParent()
        known = found[value.name].type.tensor_type
        if known.HasField("shape"):
            value.CopyFrom(found[value.name])
        else:
            value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(4))
    return model


IN = [1, 3, 32, 32]


def trunk(seed, channels=32, **options):
    """A stem and two residual blocks, to which each model below adds its own."""
    g = Graph(seed, **options)
    return g, g.residual(g.relu(g.conv("x", [channels, 3, 3, 3])), channels)


def behind_constants():
    """Kernels in Constant nodes, as some exporters of opset 9 have them."""
    g, x = trunk(1)
    kept = []
    for tensor in list(g.stored):
        g.nodes.insert(0, helper.make_node("Constant", [], [tensor.name], f"constant_{tensor.name}", value=tensor))
    g.stored = kept
    return g.model(IN, [x], opset=9, ir=4)


def behind(op):
    """Kernels that pass through a node on their way."""
    g, x = trunk(2)
    for node in [n for n in g.nodes if n.op_type == "Conv"]:
        stored = next(t for t in g.stored if t.name == node.input[1])
        values, name = numpy_helper.to_array(stored), stored.name
        attributes, extra = {}, []
        if op == "Transpose":
            values, attributes = values.transpose(2, 3, 1, 0), {"perm": [3, 2, 0, 1]}
        elif op == "Reshape":
            extra = [f"{name}_shape"]
            g.stored.append(numpy_helper.from_array(np.array(values.shape, np.int64), extra[0]))
            values = values.reshape(values.shape[0], -1)
        elif op == "Cast":
            values, attributes = values.astype(np.float16), {"to": FLOAT}
        elif op == "Unsqueeze":
            extra = [f"{name}_axes"]
            g.stored.append(numpy_helper.from_array(np.array([0], np.int64), extra[0]))
            attributes = {}
        g.stored.remove(stored)
        g.stored.append(numpy_helper.from_array(np.ascontiguousarray(values), f"{name}_stored"))
        if op == "Unsqueeze":  # and back
            g.nodes.insert(0, helper.make_node("Squeeze", [f"{name}_u", *extra], [name]))
            g.nodes.insert(0, helper.make_node("Unsqueeze", [f"{name}_stored", *extra], [f"{name}_u"]))
        else:
            g.nodes.insert(0, helper.make_node(op, [f"{name}_stored", *extra], [name], **attributes))
    return g.model(IN, [x])


def dequantised(per_channel):
    """int8 kernels behind DequantizeLinear, activations in float32: weight-only quantisation."""
    g, x = trunk(3)
    for node in [n for n in g.nodes if n.op_type == "Conv"]:
        stored = next(t for t in g.stored if t.name == node.input[1])
        values, name = numpy_helper.to_array(stored), stored.name
        scale = np.abs(values).max(axis=(1, 2, 3) if per_channel else None) / 127
        scale = np.asarray(scale, np.float32)
        whole = np.round(values / (scale[:, None, None, None] if per_channel else scale)).astype(np.int8)
        g.stored.remove(stored)
        g.stored += [numpy_helper.from_array(whole, f"{name}_q"), numpy_helper.from_array(scale, f"{name}_s"),
                     numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}_z")]
        g.nodes.insert(0, helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [name], axis=0))
    return g.model(IN, [x])


def shared_kernel():
    """One kernel that three convolutions read, and others beside it."""
    g, x = trunk(4)
    kernel = g.weight([32, 32, 3, 3])
    for _ in range(3):
        x = g.relu(g.node("Conv", [x, kernel], kernel_shape=[3, 3], pads=[1] * 4))
    return g.model(IN, [x])


def body(seed, name, channels, out):
    """A graph for If: a convolution of the captured value, with a captured kernel where asked."""
    g = Graph(seed, prefix=f"in{seed}_")
    y = g.conv(name, [channels, channels, 3, 3])
    g.nodes[-1].output[0] = out
    return helper.make_graph(g.nodes, f"branch{seed}", [], [helper.make_tensor_value_info(out, FLOAT, [1, channels, 32, 32])], g.stored)


def with_if(captured):
    g, x = trunk(5)
    flag = "flag"
    g.stored.append(numpy_helper.from_array(np.array(True), flag))
    then, other = body(50, x, 32, "then_out"), body(51, x, 32, "else_out")
    if captured:  # a kernel of the outer graph, read inside
        kernel = g.weight([32, 32, 3, 3], "outer_kernel")
        for branch in (then, other):
            branch.node[0].input[1] = kernel
            del branch.initializer[:]
            del branch.node[0].input[2:]
        x = g.relu(g.node("Conv", [x, kernel], kernel_shape=[3, 3], pads=[1] * 4))
    else:  # the name of an outer kernel, shadow-free but equal inside both branches
        x = g.residual(x, 32, 1)
    out = g.node("If", [flag], then_branch=then, else_branch=other)
    return g.model(IN, [out, x] if captured else [out])


def with_loop():
    g, x = trunk(6)
    g.stored.append(numpy_helper.from_array(np.array(3, np.int64), "trips"))
    inner = Graph(60, prefix="loop_")
    y = inner.relu(inner.conv("state", [32, 32, 3, 3]))
    y = inner.node("Identity", [y], "state_out")
    inner.nodes.append(helper.make_node("Identity", ["go"], ["go_on"]))
    info = helper.make_tensor_value_info
    loop = helper.make_graph(inner.nodes, "loop", [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", FLOAT, [1, 32, 32, 32])],
                             [info("go_on", TensorProto.BOOL, []), info(y, FLOAT, [1, 32, 32, 32])], inner.stored)
    out = g.node("Loop", ["trips", "", x], body=loop)
    return g.model(IN, [out])


def with_scan():
    g, x = trunk(7)
    inner = Graph(70, prefix="scan_")
    y = inner.conv("one", [16, 32, 3, 3])
    info = helper.make_tensor_value_info
    scan = helper.make_graph(inner.nodes, "scan", [info("one", FLOAT, [1, 32, 32, 32])], [info(y, FLOAT, [1, 16, 32, 32])], inner.stored)
    g.stored.append(numpy_helper.from_array(np.array([0], np.int64), "front"))
    stacked = g.node("Unsqueeze", [x, "front"])
    out = g.node("Scan", [stacked], body=scan, num_scan_inputs=1)
    return g.model(IN, [out])


def sparse():
    """One kernel as a sparse initializer."""
    g, x = trunk(8)
    values = g.values([32, 32, 3, 3])
    values[np.abs(values) < np.quantile(np.abs(values), 0.7)] = 0
    flat = values.ravel()
    index = np.flatnonzero(flat)
    out = g.node("Conv", [x, "sparse_kernel"], kernel_shape=[3, 3], pads=[1] * 4)
    model = g.model(IN, [out])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(
        numpy_helper.from_array(flat[index], "sparse_kernel"), numpy_helper.from_array(index.astype(np.int64), "sparse_kernel_i"), values.shape))
    return model


def foreign(op, domain):
    """A custom operator in the middle, which no runtime knows."""
    g, x = trunk(9)
    x = g.node(op, [x], domain=domain)
    return g.model(IN, [g.residual(x, 32, 1)], imports=[domain])


def in_function(own_kernel):
    """A local function that holds a convolution; its kernel an argument or a Constant inside."""
    g, x = trunk(10)
    attributes = {"kernel_shape": [3, 3], "pads": [1] * 4}
    read = [helper.make_node("Conv", ["a", "w"], ["c"], "conv", **attributes), helper.make_node("Relu", ["c"], ["y"], "relu")]
    inputs = ["a", "w"]
    if own_kernel:
        read.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(g.values([32, 32, 3, 3]), "k")))
        inputs = ["a"]
    function = helper.make_function("local", "ConvRelu", inputs, ["y"], read, [helper.make_opsetid("", 17)])
    for _ in range(3):
        x = g.node("ConvRelu", [x] if own_kernel else [x, g.weight([32, 32, 3, 3])], domain="local")
    return g.model(IN, [x], functions=[function], imports=["local"])


def renamed(how):
    g, x = trunk(11)
    for number, node in enumerate(g.nodes):
        node.name = {"empty": "", "same": "node", "unicode": f"слой/畳み込み·{number} \"π\"\n<b>&"}[how]
    if how == "unicode":
        new = {o: f"значение {i} 値" for i, n in enumerate(g.nodes) for o in n.output} | {t.name: f"poids é {t.name}" for t in g.stored}
        for node in g.nodes:
            for field in (node.input, node.output):
                for place, name in enumerate(field):
                    field[place] = new.get(name, name)
        for tensor in g.stored:
            tensor.name = new[tensor.name]
        x = new[x]
    return g.model(IN, [x])


def unknown_fields():
    """Fields of a later schema in model, graph, node and tensor: they have to come out as they went in."""
    g, x = trunk(12)
    model = g.model(IN, [x])
    later = b"\xfa\x7d\x05later"  # field 2015, a string
    graph = model.graph.SerializeToString() + later
    model.ClearField("graph")
    length, out = len(graph), bytearray()
    while True:
        out.append(length & 0x7F | (0x80 if length > 0x7F else 0))
        length >>= 7
        if not length:
            break
    return model.SerializeToString() + b"\x3a" + bytes(out) + graph + later


def same_padding():
    g = Graph(13)
    x = "x"
    for number, (i, o, s, d) in enumerate([(3, 32, 2, 1), (32, 32, 1, 1), (32, 32, 1, 1), (32, 64, 2, 1), (64, 64, 1, 1)]):
        pad = "SAME_LOWER" if number % 2 else "SAME_UPPER"
        x = g.relu(g.conv(x, [o, i, 3, 3], strides=[s, s], dilations=[d, d], pads=None, auto_pad=pad))
    return g.model([1, 3, 31, 33], [x])


def open_same_padding():
    """SAME pads of an input whose size is open."""
    model = same_padding()
    for axis, name in ((0, "n"), (2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return model


def uneven():
    """Kernels, strides, dilations and pads that differ between the axes, in groups too."""
    g = Graph(14)
    x = g.relu(g.conv("x", [32, 3, 5, 3], strides=[1, 2], pads=[2, 0, 1, 1]))
    x = g.relu(g.conv(x, [32, 32, 3, 5], dilations=[2, 1], pads=[2, 3, 0, 1]))
    x = g.relu(g.conv(x, [32, 8, 3, 3], group=4))
    x = g.relu(g.conv(x, [64, 32, 1, 1], strides=[2, 2]))
    x = g.conv(x, [64, 64, 2, 4], pads=[0, 1, 1, 2])
    return g.model(IN, [x])


def norms_between():
    """Batch norms that may be folded and such that may not: read twice, statistics as outputs of the graph."""
    g = Graph(15)
    x = g.relu(g.norm(g.conv("x", [32, 3, 3, 3], bias=False), 32))
    y = g.conv(x, [32, 32, 3, 3])
    x = g.node("Add", [g.norm(y, 32), y])
    z = g.conv(x, [32, 32, 3, 3], bias=False)
    return g.model(IN, [g.norm(z, 32), z])


def overridable(ir):
    g, x = trunk(16)
    info = [helper.make_tensor_value_info(t.name, FLOAT, list(t.dims)) for t in g.stored]
    return g.model(IN, [x], opset=8 if ir == 3 else 17, ir=ir, extra=info)


def half_overridable():
    """One kernel of five is also an input."""
    g, x = trunk(17)
    first = g.stored[2]
    return g.model(IN, [x], extra=[helper.make_tensor_value_info(first.name, FLOAT, list(first.dims))])


def two_inputs():
    """Two image inputs of other sizes, and integers: three outputs."""
    g, x = trunk(18)
    y = g.relu(g.conv("second", [32, 1, 5, 5], strides=[2, 2]))
    pooled = [g.node("GlobalAveragePool", [v]) for v in (x, y)]
    joined = g.node("Concat", pooled, axis=1)
    flat = g.node("Flatten", [joined])
    table = g.weight([50, 64], "table")
    looked = g.node("Gather", [table, "ids"])
    out = g.node("Gemm", [g.node("Add", [flat, looked]), g.weight([64, 40]), g.vector(np.zeros(40))])
    extra = [helper.make_tensor_value_info("second", FLOAT, [1, 1, 40, 24]), helper.make_tensor_value_info("ids", TensorProto.INT64, [1])]
    return g.model(IN, [out, x, y], extra=extra)


def matrices():
    """Every way that Gemm and MatMul read a constant."""
    g = Graph(19)
    x = g.node("Gemm", ["x", g.weight([96, 64]), g.vector(g.rng.normal(size=96))], transB=1, alpha=0.5, beta=2.0)
    x = g.relu(g.node("MatMul", [x, g.weight([96, 128])]))
    x = g.relu(g.node("Add", [g.node("MatMul", [x, g.weight([128, 128])]), g.vector(g.rng.normal(size=128))]))
    x = g.node("MatMul", [g.weight([12, 8]), g.node("Relu", [x])])
    x = g.node("Gemm", [x, g.weight([12, 100])], transA=1)
    return g.model([8, 64], [x])


def transposed():
    """ConvTranspose with groups, dilations, output padding, one axis only."""
    g = Graph(20)
    def up(x, shape, **attributes):
        return g.node("ConvTranspose", [x, g.weight(shape), g.vector(g.rng.normal(0, 0.05, shape[1] * attributes.get("group", 1)))], **attributes)
    x = g.relu(g.conv("x", [32, 3, 3, 3]))
    x = g.relu(up(x, [32, 32, 4, 4], strides=[2, 2], pads=[1] * 4))
    x = g.relu(up(x, [32, 32, 3, 3], dilations=[2, 1], pads=[2, 1, 2, 1]))
    x = g.relu(up(x, [32, 8, 3, 3], group=4, pads=[1] * 4))
    x = up(x, [32, 24, 3, 2], strides=[2, 1], pads=[1, 0, 1, 0], output_padding=[1, 0])
    return g.model([1, 3, 12, 12], [x])


def solids():
    g = Graph(21)
    x = g.relu(g.conv("x", [24, 2, 3, 3, 3], strides=[1, 2, 2]))
    x = g.relu(g.conv(x, [24, 24, 3, 1, 1], pads=[1, 0, 0, 1, 0, 0]))
    x = g.relu(g.conv(x, [32, 24, 3, 3, 3], dilations=[1, 2, 1], pads=[1, 2, 1, 1, 2, 1]))
    x = g.conv(x, [32, 32, 1, 3, 3], pads=[0, 1, 1, 0, 1, 1])
    return g.model([1, 2, 8, 20, 20], [x])


def lines():
    g = Graph(22)
    x = g.relu(g.conv("x", [32, 8, 9], strides=[2], pads=[4, 4]))
    x = g.relu(g.conv(x, [32, 32, 5], dilations=[3], pads=[6, 6]))
    x = g.relu(g.conv(x, [32, 8, 3], group=4))
    x = g.relu(g.conv(x, [48, 32, 1]))
    x = g.conv(x, [48, 48, 4], pads=None, auto_pad="SAME_UPPER")
    return g.model([1, 8, 200], [x])


def typed(data_type):
    """float32 kernels in the tensors' typed fields in place of raw bytes, and other types."""
    g, x = trunk(23, dtype=helper.tensor_dtype_to_np_dtype(data_type))
    for tensor in g.stored:
        values = numpy_helper.to_array(tensor)
        if data_type == FLOAT:
            tensor.CopyFrom(helper.make_tensor(tensor.name, FLOAT, values.shape, values.ravel()))
    return g.model(IN, [x], dtype=data_type)


def exact_low_rank():
    """Kernels of exactly rank 4: at 2x nothing is lost."""
    g = Graph(24)
    def kernel(out, inputs):
        a, b = g.rng.standard_normal((3 * inputs, 4)), g.rng.standard_normal((4, 3 * out))
        product = (a @ b).reshape(3, inputs, 3, out).transpose(3, 1, 0, 2) / np.sqrt(9 * inputs * 3)
        return g.vector(product)
    x = g.relu(g.node("Conv", ["x", g.weight([32, 3, 3, 3])], pads=[1] * 4))
    for _ in range(4):
        x = g.relu(g.node("Conv", [x, kernel(32, 32)], pads=[1] * 4))
    return g.model(IN, [x])


def tiny():
    g = Graph(25)
    return g.model(IN, [g.conv("x", [2, 3, 1, 1])])


def no_layers():
    g = Graph(26)
    return g.model(IN, [g.relu("x")])


def bad_attributes():
    """kernel_shape that is not the kernel's: not sound."""
    g, x = trunk(27)
    x = g.conv(x, [32, 32, 3, 3], kernel_shape=[5, 5], pads=[1] * 4)
    return g.model(IN, [x])


def not_finite():
    g, x = trunk(28)
    values = numpy_helper.to_array(g.stored[2]).copy()
    values[0, 0, 0, 0] = np.nan
    g.stored[2].CopyFrom(numpy_helper.from_array(values, g.stored[2].name))
    return g.model(IN, [x])


def big_opset():
    g, x = trunk(29)
    return g.model(IN, [x], opset=onnx.defs.onnx_opset_version(), ir=onnx.IR_VERSION)


def open_everything():
    """Batch, height and width open and unnamed."""
    g, x = trunk(30)
    model = g.model(IN, [x])
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
    return model


SIZES = {"shapes": {"x": [1, 3, 31, 33]}}
MODELS = {
    "constants": ("Kernels in Constant nodes", behind_constants),
    **{f"behind-{op.lower()}": (f"Kernels behind {op}", lambda op=op: behind(op)) for op in ("Identity", "Transpose", "Reshape", "Cast", "Unsqueeze")},
    "behind-dq": ("int8 kernels behind DequantizeLinear", lambda: dequantised(False)),
    "behind-dq-channel": ("the same, a scale a channel", lambda: dequantised(True)),
    "shared-kernel": ("One kernel read three times", shared_kernel),
    "if": ("Convolutions in both branches of If", lambda: with_if(False)),
    "if-captured": ("the same, with a kernel from outside", lambda: with_if(True)),
    "loop": ("A convolution in a Loop", with_loop),
    "scan": ("A convolution in a Scan", with_scan),
    "sparse": ("A sparse initializer as kernel", sparse),
    "custom-op": ("An operator of a domain of its own", lambda: foreign("Secret", "com.example")),
    "custom-conv": ("A Conv of another domain", lambda: foreign("Conv", "com.example")),
    "function": ("Local functions, kernel as an argument", lambda: in_function(False)),
    "function-own": ("Local functions, kernel inside", lambda: in_function(True)),
    "names-empty": ("Nodes without names", lambda: renamed("empty")),
    "names-same": ("All nodes of one name", lambda: renamed("same")),
    "names-unicode": ("Names in other scripts, with quotes and line breaks", lambda: renamed("unicode")),
    "unknown-fields": ("Fields of a later schema", unknown_fields),
    "same-pads": ("auto_pad SAME_UPPER and SAME_LOWER", same_padding),
    "same-pads-open": ("the same, size open", open_same_padding, SIZES),
    "uneven": ("Axes that differ in everything", uneven),
    "norms": ("Batch norms that others read around", norms_between),
    "overridable-ir3": ("All initializers also inputs, IR 3", lambda: overridable(3)),
    "overridable-ir8": ("All initializers also inputs, IR 8", lambda: overridable(8)),
    "overridable-one": ("One kernel also an input", half_overridable),
    "two-inputs": ("Two images and an integer in, three values out", two_inputs),
    "matrices": ("Gemm and MatMul in every form", matrices),
    "transposed": ("ConvTranspose in every form", transposed),
    "solids": ("Conv3d in every form", solids),
    "lines": ("Conv1d in every form", lines),
    "typed-data": ("float_data in place of raw bytes", lambda: typed(FLOAT)),
    "double": ("float64", lambda: typed(TensorProto.DOUBLE)),
    "half": ("float16", lambda: typed(TensorProto.FLOAT16)),
    "bfloat16": ("bfloat16, inputs too", lambda: typed(TensorProto.BFLOAT16)),
    "exact": ("Kernels of exactly rank 4", exact_low_rank),
    "tiny": ("One kernel of 6 weights", tiny),
    "no-layers": ("A Relu alone", no_layers),
    "contradiction": ("kernel_shape that is not the kernel's", bad_attributes),
    "nan": ("A kernel with a NaN", not_finite),
    "latest": ("The newest opset and IR", big_opset),
    "open": ("Batch and sizes open, unnamed", open_everything, SIZES),
}


def make(corpus):
    for name, (what, build, *known) in MODELS.items():
        name = f"hand-{name}"
        if not corpus.wants(name):
            continue
        model = build()
        if isinstance(model, bytes):
            corpus.path(name).write_bytes(model)
        else:
            onnx.save(model, corpus.path(name))
        corpus.add(name, what, HAND, **(known[0] if known else {}))
