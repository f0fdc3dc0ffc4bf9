"""Whether a written model computes what it claims, found out with onnx and ONNX Runtime alone.

Every replacement is cut out of the written model and run on unit impulses: its response is the kernel that it stands for, whatever
operators it is made of. The original with these kernels must then give the written model's outputs, and the kernels must miss the
original's by the error that the report states.
"""
import itertools, math
from collections import Counter
import numpy as np, onnx, onnx.inliner, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from cross_check import FLOATS, LEVELS, OUTPUT_TOLERANCE, Failed, check, drop_stale, fed

KERNEL_OPS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
QUANTISED = {"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "QLinearConv"}
# Rounding may move a value across a quantisation step, and the layers behind it follow.
QUANTISED_TOLERANCE = 0.1
# Relative, between a group's error as reported and as the impulses say: float32 responses.
ERROR_TOLERANCE = 2e-3
BIAS_TOLERANCE = 1e-5
# IR version and opset of ONNX Runtime 1.31.
YOUNGEST = 13, 26


class NoReference(Exception):
    """Why there is nothing to compare with."""


def attribute(node, name, default=None):
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def graphs(graph):
    yield graph
    for node in graph.node:
        for a in node.attribute:
            for inner in [a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs:
                yield from graphs(inner)


def widen(model):
    """All floats as float32, which ONNX Runtime has every operator for."""
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    new = onnx.ModelProto()
    new.CopyFrom(model)
    narrow = FLOATS - {TensorProto.FLOAT}
    if not any(t.data_type in narrow for g in graphs(new.graph) for t in g.initializer):
        return new
    as_float = lambda t: t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float32), t.name))
    for graph in graphs(new.graph):
        for tensor in graph.initializer:
            if tensor.data_type in narrow:
                as_float(tensor)
        for described in (*graph.input, *graph.output, *graph.value_info):
            if described.type.tensor_type.elem_type in narrow:
                described.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for a in node.attribute:
                if a.type == onnx.AttributeProto.TENSOR and a.t.data_type in narrow:
                    as_float(a.t)
                if a.name in ("to", "dtype") and a.i in narrow:
                    a.i = TensorProto.FLOAT
    return new


def without_functions(model):
    """Bodies in the place of calls, under the names that the tool documents: the call's name, a slash, the body's own."""
    functions = {(f.domain, f.name): f for f in model.functions}
    new = onnx.ModelProto()
    new.CopyFrom(model)
    new.ClearField("functions")
    del new.graph.node[:]
    label = lambda node: node.name or f"{node.op_type}({node.output[0]})"

    def place(node):
        function = functions.get((node.domain, node.op_type))
        if function is None:
            new.graph.node.append(node)
            return
        given = dict(zip(function.output, node.output))
        names = dict(itertools.zip_longest(function.input, node.input, fillvalue=""))
        for inner in function.node:
            for output in inner.output:
                names[output] = given.get(output) or f"{label(node)}/{output}"
            if inner.op_type == "Constant":
                names[inner.output[0]] = f"{function.name}/{inner.output[0]}"
                if names[inner.output[0]] not in {t.name for t in new.graph.initializer}:
                    new.graph.initializer.add().CopyFrom(attribute(inner, "value"))
                    new.graph.initializer[-1].name = names[inner.output[0]]
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(inner)
            copy.name = f"{label(node)}/{label(inner)}"
            copy.input[:] = [names.get(name, "") for name in inner.input]
            copy.output[:] = [names.get(name, "") for name in inner.output]
            del copy.attribute[:]
            for a in inner.attribute:
                found = next((b for b in (*node.attribute, *function.attribute_proto) if b.name == a.ref_attr_name), None)
                if not a.ref_attr_name or found is not None:
                    copy.attribute.add().CopyFrom(found or a)
                    copy.attribute[-1].name = a.name
            place(copy)

    for node in model.graph.node:
        place(node)
    return new


def acceptable(model):
    """What ONNX Runtime refuses of a sound model: a younger IR or opset than its own, two nodes of one name."""
    names = Counter(n.name for n in model.graph.node if n.name)
    young = model.ir_version > YOUNGEST[0] or any(o.domain in ("", "ai.onnx") and o.version > YOUNGEST[1] for o in model.opset_import)
    if not young and (not names or max(names.values()) == 1):
        return model
    new = onnx.ModelProto()
    new.CopyFrom(model)
    new.ir_version = min(new.ir_version, YOUNGEST[0])
    for domain in new.opset_import:
        if domain.domain in ("", "ai.onnx"):
            domain.version = min(domain.version, YOUNGEST[1])
    for node in new.graph.node:
        node.ClearField("name")
    return new


def session(model, level=LEVELS[0]):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    model = acceptable(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def stretch(model, wanted, stop=()):
    """Nodes that make `wanted`, in order, and the values they read that no constant and no such node makes."""
    makers = {o: n for n in model.graph.node for o in n.output}
    stored = {t.name for t in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    taken, open_values, todo = set(), [], [wanted]
    while todo:
        name = todo.pop()
        if name in stored or not name:
            continue
        node = makers.get(name)
        if node is None or name in stop or not (name == wanted or stands_for_a_layer(node) or is_constant(name, makers, stored)):
            if name not in open_values:
                open_values.append(name)
            continue
        if id(node) not in taken:
            taken.add(id(node))
            todo.extend(node.input)
    return [n for n in model.graph.node if id(n) in taken], open_values


def is_constant(name, makers, stored, depth=0):
    if name in stored or not name:
        return True
    node = makers.get(name)
    if node is None or depth > 50 or any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
        return False
    return all(is_constant(i, makers, stored, depth + 1) for i in node.input)


def stands_for_a_layer(node):
    return "/jmd_" in node.name


def cut(model, nodes, inputs, outputs):
    """A model of these nodes alone."""
    needed = {i for n in nodes for i in n.input}
    constants = [t for t in model.graph.initializer if t.name in needed]
    opened = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    closed = [helper.make_empty_tensor_value_info(name) for name in outputs]
    for value in closed:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(nodes, "cut", opened, closed, constants)
    graph.sparse_initializer.extend(s for s in model.graph.sparse_initializer if s.values.name in needed)
    new = helper.make_model(graph, opset_imports=model.opset_import)
    new.ir_version = max(model.ir_version, 4)
    return new


def constant(model, name):
    """A value that follows from constants alone, by ONNX Runtime; none if it does not."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    makers = {o: n for n in model.graph.node for o in n.output}
    stored = {t.name for t in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    if not is_constant(name, makers, stored):
        return None
    if name in stored:
        passed = helper.make_node("Identity", [name], ["constant_value"])
        return session(cut(model, [passed], [], ["constant_value"])).run(None, {})[0]
    nodes, _ = stretch(model, name)
    return session(cut(model, nodes, [], [name])).run(None, {})[0]


def slid(node, axes):
    """Strides, dilations, padding before, as a function of the input's size."""
    strides, dilations = attribute(node, "strides", [1] * axes), attribute(node, "dilations", [1] * axes)
    auto = (attribute(node, "auto_pad") or b"NOTSET").decode()
    pads = attribute(node, "pads", [0] * 2 * axes)

    def before(axis, size, kernel):
        if auto in ("NOTSET", ""):
            return pads[axis]
        if auto == "VALID":
            return 0
        total = max(0, (math.ceil(size / strides[axis]) - 1) * strides[axis] + dilations[axis] * (kernel - 1) + 1 - size)
        return total // 2 if auto == "SAME_UPPER" else total - total // 2

    return strides, dilations, pads, before


def conv_response(run, node, shape, groups):
    """The kernel [out, in / groups, …] that impulses show, and the bias."""
    out, per_group, *kernel = shape
    axes, inputs = len(kernel), per_group * groups
    strides, dilations, _, before = slid(node, axes)
    base = [d * (k - 1) + 1 for d, k in zip(dilations, kernel)]
    sizes = [b + s + d * (k - 1) + k + 2 * s for b, s, d, k in zip(base, strides, dilations, kernel)]
    bias = run(np.zeros((1, inputs, *sizes), np.float32))[0].reshape(out, -1)
    bias = bias[:, bias.shape[1] // 2]
    found = np.zeros((out, inputs, *kernel), np.float32)
    at_once = max(1, 20_000_000 // (max(inputs, out) * math.prod(sizes)))
    pads = [before(axis, sizes[axis], kernel[axis]) for axis in range(axes)]
    for offsets in np.ndindex(*strides):
        places = [b + j for b, j in zip(base, offsets)]
        taps = [[(t, (p + pad - t * d) // s) for t in range(k) if (p + pad - t * d) % s == 0]
                for p, pad, k, d, s in zip(places, pads, kernel, dilations, strides)]
        if not all(taps):
            continue
        for first in range(0, inputs, at_once):
            channels = range(first, min(inputs, first + at_once))
            x = np.zeros((len(channels), inputs, *sizes), np.float32)
            for row, channel in enumerate(channels):
                x[(row, channel, *places)] = 1
            y = run(x) - bias.reshape(1, out, *[1] * axes)
            for combination in itertools.product(*taps):
                tap, place = zip(*combination)
                found[(slice(None), slice(first, first + len(channels)), *tap)] = y[(slice(None), slice(None), *place)].T
    return grouped(found, groups), bias


def grouped(full, groups):
    out, inputs = full.shape[:2]
    blocks = full.reshape(groups, out // groups, groups, inputs // groups, *full.shape[2:])
    own = np.stack([blocks[g, :, g] for g in range(groups)])
    energy = np.sum(np.square(full, dtype=np.float64)) - np.sum(np.square(own, dtype=np.float64))
    check(energy <= 1e-8 * max(1e-12, np.sum(np.square(full, dtype=np.float64))), "a channel reaches another group")
    return own.reshape(out, inputs // groups, *full.shape[2:])


def transposed_response(run, node, shape, groups):
    """The kernel [in, out / groups, …] of a ConvTranspose, and the bias."""
    inputs, per_group, *kernel = shape
    axes, out = len(kernel), per_group * groups
    if attribute(node, "output_shape") or (attribute(node, "auto_pad") or b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NoReference("a ConvTranspose whose pads follow from its output's shape")
    strides, dilations, pads, _ = slid(node, axes)
    places = [math.ceil(pads[a] / strides[a]) for a in range(axes)]
    sizes = [places[a] + math.ceil(pads[a + axes] / strides[a]) + kernel[a] + 1 for a in range(axes)]
    bias = run(np.zeros((1, inputs, *sizes), np.float32))[0].reshape(out, -1)[:, 0]
    full = np.zeros((inputs, out, *kernel), np.float32)
    at_once = max(1, 20_000_000 // (max(inputs, out) * math.prod(s * n for s, n in zip(strides, sizes))))
    for first in range(0, inputs, at_once):
        channels = range(first, min(inputs, first + at_once))
        x = np.zeros((len(channels), inputs, *sizes), np.float32)
        for row, channel in enumerate(channels):
            x[(row, channel, *places)] = 1
        y = run(x) - bias.reshape(1, out, *[1] * axes)
        for tap in np.ndindex(*kernel):
            place = [places[a] * strides[a] + tap[a] * dilations[a] - pads[a] for a in range(axes)]
            full[(slice(first, first + len(channels)), slice(None), *tap)] = y[(slice(None), slice(None), *place)]
    swapped = grouped(full.swapaxes(0, 1), groups)  # [out, in / groups, …]
    blocks = swapped.reshape(groups, per_group, inputs // groups, *kernel)
    return blocks.swapaxes(1, 2).reshape(inputs, per_group, *kernel), bias


def matrix_response(run, inputs, left):
    """The matrix that a Gemm or MatMul multiplies with, and the bias."""
    zero = run(np.zeros((inputs, 1) if left else (1, inputs), np.float32))
    matrix = run(np.eye(inputs, dtype=np.float32)) - zero
    return matrix, zero if left else zero[0]


class Reference:
    """The original with the kernels that the written model's replacements stand for."""

    def __init__(self, original, small, calibrated):
        self.original, self.small, self.calibrated = original, small, calibrated
        self.model = onnx.ModelProto()
        self.model.CopyFrom(original)
        self.readers = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.makers = {o: n for n in small.graph.node for o in n.output}
        self.lost = {}  # by the label of a node: squared error and energy
        self.replaced, self.refitted, self.norms, self.kernels = [], [], set(), set()
        self.fresh = itertools.count()
        for node in list(self.model.graph.node):
            if node.op_type in KERNEL_OPS and node.domain in ("", "ai.onnx"):
                self.visit(node)
        drop_stale(self.model.graph)
        self.check_rest()

    def visit(self, node):
        out, norm = node.output[0], None
        if out not in self.makers:
            behind = self.readers.get(out, [])
            if len(behind) != 1 or behind[0].op_type not in ("BatchNormalization", "Add"):
                raise Failed(f"'{node.name or out}' is gone and neither batch norm nor bias stands behind it")
            norm, out = behind[0], behind[0].output[0]
            check(out in self.makers, f"'{node.name or out}' and the {norm.op_type} behind it are gone")
        new = self.makers[out]
        if stands_for_a_layer(new):
            self.replace(node, norm, out)
        else:
            check(norm is None and new.op_type == node.op_type, f"'{node.name or out}' is now a {new.op_type}")
            self.take_over(node, new)
            for behind in self.readers.get(out, []):
                if behind.op_type == "BatchNormalization" and behind.output[0] in self.makers:
                    self.take_over_norm(behind, self.makers[behind.output[0]])

    def take_over_norm(self, norm, new):
        """A refitted layer has its new bias in the batch norm behind it."""
        if list(norm.input) == list(new.input):
            return
        check(self.calibrated and new.op_type == norm.op_type, f"'{norm.name}' was given other inputs")
        places = [p for p, (was, now) in enumerate(zip(norm.input, new.input, strict=True)) if was != now]
        check(places == [2], f"'{norm.name}' was given more than another bias")
        self.refitted.append(norm.name)
        self.norms.add(norm.output[0])
        norm.input[2] = self.store(constant(self.small, new.input[2]))

    def take_over(self, node, new):
        """Constants of a layer that was refitted and not decomposed."""
        for place, (was, now) in enumerate(zip(list(node.input), new.input)):
            if place == 0 and node.op_type != "MatMul":
                check(was == now, f"'{node.name}' reads '{now}', not '{was}'")
                continue
            old, written = constant(self.original, was), constant(self.small, now)
            if written is None or (old is not None and old.shape == written.shape and np.array_equal(old, written)):
                continue
            check(self.calibrated, f"'{node.name}' was given other constants")
            self.refitted.append(node.name)
            node.input[place] = self.store(written)
        for now in list(new.input)[len(node.input):]:
            check(self.calibrated, f"'{node.name}' was given a bias")
            node.input.append(self.store(constant(self.small, now)))

    def store(self, values):
        name = f"reference_{next(self.fresh)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def replace(self, node, norm, out):
        left = node.op_type == "MatMul" and constant(self.original, node.input[0]) is not None
        place = 1 if left else 0
        nodes, read = stretch(self.small, out, stop={node.input[place]})
        # A bias that follows from the model's inputs stays what it was.
        computed = [name for name in node.input[2:] if name in read]
        if [name for name in read if name not in computed] != [node.input[place]]:
            raise Failed(f"the replacement of '{node.name or out}' reads {read}, not '{node.input[place]}'")
        kernel = constant(self.original, node.input[1 - place])
        if kernel is None:
            raise NoReference(f"the kernel of '{node.name or out}' is computed")
        runner = session(cut(self.small, nodes, read, [out]))
        zeros = {name: np.zeros(kernel.shape[0], kernel.dtype) for name in computed}
        run = lambda x: runner.run(None, {node.input[place]: x, **zeros})[0]
        kernel = kernel.astype(np.float64)
        groups = attribute(node, "group", 1)
        add = None
        if node.op_type == "Conv":
            found, bias = conv_response(run, node, kernel.shape, groups)
            axis, channels = 0, kernel.shape[0]
        elif node.op_type == "ConvTranspose":
            found, bias = transposed_response(run, node, kernel.shape, groups)
            axis, channels = 1, kernel.shape[1] * groups
        else:
            if kernel.ndim != 2:
                raise NoReference(f"'{node.name or out}' multiplies with a stack of matrices")
            if node.op_type == "Gemm":
                kernel = kernel.T if attribute(node, "transB", 0) else kernel
                kernel = kernel * attribute(node, "alpha", 1.0)
            found, bias = matrix_response(run, kernel.shape[0 if not left else 1], left)
            axis, channels = (0 if left else 1), kernel.shape[0 if left else 1]
            add = bias
        expected = constant(self.original, node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(channels)
        if expected is not None and node.op_type == "Gemm":
            expected = expected * attribute(node, "beta", 1.0)
        if norm is not None and norm.op_type == "Add":
            added = constant(self.original, next(i for i in norm.input if i != node.output[0]))
            check(added is not None, f"'{norm.name}' adds no constant and is gone")
            # Of a convolution it has an axis a spatial dimension.
            expected = expected + (added.ravel() if node.op_type.startswith("Conv") else added)
        elif norm is not None:
            gamma, beta, mean, variance = (constant(self.original, i).astype(np.float64) for i in norm.input[1:5])
            scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
            expected = (expected - mean) * scale + beta
            if node.op_type == "ConvTranspose":
                grid = scale.reshape(groups, 1, -1).repeat(kernel.shape[0] // groups, 1).reshape(kernel.shape[0], -1)
                kernel = kernel * grid.reshape(*grid.shape, *[1] * (kernel.ndim - 2))
            else:
                shape = [1] * kernel.ndim
                shape[axis] = channels
                kernel = kernel * scale.reshape(shape)
        if expected is not None and not self.calibrated:
            off = np.abs(np.asarray(bias, np.float64) - (expected if add is not None else expected.ravel())).max()
            close = off <= BIAS_TOLERANCE * max(1.0, np.abs(expected).max())
            check(close, f"'{node.name or out}': its bias is off by {off:.1e}")
        self.lost.setdefault(label(node), []).append((np.sum((kernel - found) ** 2), np.sum(kernel**2)))
        self.replaced.append(node)
        self.kernels.add(node.input[1 - place])
        if norm is not None:
            self.model.graph.node.remove(norm)
        if add is None:
            del node.input[2:]
            node.input[1] = self.store(found.astype(np.float32))
            node.input.append(self.store(bias.astype(np.float32)))
            node.output[0] = out
            return
        x = node.input[place]
        index = list(self.model.graph.node).index(node)
        transposed = node.op_type == "Gemm" and attribute(node, "transA", 0)
        matrix, bias = self.store(found), self.store(bias)
        product = f"reference_product_{next(self.fresh)}"
        made = []
        if transposed:
            made.append(helper.make_node("Transpose", [x], [f"{product}_turned"], perm=[1, 0]))
            x = f"{product}_turned"
        made.append(helper.make_node("MatMul", [matrix, x] if left else [x, matrix], [product]))
        made.append(helper.make_node("Add", [product, bias], [out]))
        del self.model.graph.node[index]
        for number, new in enumerate(made):
            self.model.graph.node.insert(index + number, new)

    def check_rest(self):
        """Whatever is no layer with a kernel stands as it was."""
        plain = lambda model: Counter(n.SerializeToString(deterministic=True) for n in model.graph.node
                                      if n.op_type not in KERNEL_OPS and not stands_for_a_layer(n) and n.output[0] not in self.norms)
        added = plain(self.small) - plain(self.original)
        names = [onnx.NodeProto.FromString(n) for n in added]
        # The shape of a kernel that is gone is written down.
        shapes = {n.output[0]: n for n in self.original.graph.node if n.op_type == "Shape"}
        for node in names:
            asked = shapes.get(node.output[0]) if node.op_type == "Constant" else None
            if asked is not None:
                kernel = constant(self.original, asked.input[0])
                dims = list(kernel.shape)[attribute(asked, "start", 0):attribute(asked, "end", None)] if kernel is not None else None
                check(numpy_helper.to_array(node.attribute[0].t).tolist() == dims, f"'{asked.name}' became another shape")
        names = [n for n in names if not (n.op_type == "Constant" and n.output[0] in shapes)]
        added = names
        check(not added, f"other nodes changed: {[f'{n.op_type} {n.name}' for n in names][:4]}")


def label(node):
    return node.name or f"{node.op_type}({node.output[0]})"


def check_errors(reference, report):
    """The report's errors of groups against those of the kernels that the impulses showed."""
    known = {}
    for name, pairs in reference.lost.items():
        known.setdefault(name, []).extend(pairs)
    members = [m for g in report["groups"] for m in g["members"]]
    # One stands for all that read its kernel.
    kernels = len(reference.kernels)
    check(len(members) == kernels, f"{len(members)} layers reported, those of {kernels} kernels replaced")
    for group in report["groups"]:
        # Names that stand for several nodes say nothing about which.
        if group.get("reconstruction_error") is None or any(len(known.get(m, ())) != 1 for m in group["members"]):
            continue
        lost, energy = (sum(known[m][0][i] for m in group["members"]) for i in (0, 1))
        error, stated = math.sqrt(lost / energy) if energy else 0.0, group["reconstruction_error"]
        check(abs(error - stated) <= ERROR_TOLERANCE * stated + 1e-4, f"{group['group']}: kernels miss by {error:.5f}, reported {stated:.5f}")


def feeds(graph, known):
    """Seeded noise; integers from 0 up to the bound known."""
    rng = np.random.default_rng(0)
    made = {}
    for entry in fed(graph):
        stated = entry.type.tensor_type.shape.dim
        shape = (known.get("shapes") or {}).get(entry.name) or [d.dim_value or (64 if axis > 1 else 1) for axis, d in enumerate(stated)]
        dtype = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        if np.dtype(dtype).kind in "iu":
            made[entry.name] = rng.integers(0, known.get("ints", 5), shape).astype(dtype)
        elif np.dtype(dtype).kind == "b":
            made[entry.name] = rng.random(shape) < 0.7
        else:
            made[entry.name] = rng.standard_normal(shape).astype(dtype)
    return made


def difference(wanted, found):
    """Of the largest value; infinite where shapes or NaNs differ."""
    worst = 0.0
    for y, z in zip(wanted, found, strict=True):
        y, z = (np.asarray(a) for a in (y, z))
        if y.dtype.kind not in "fiub" and "float" not in str(y.dtype):
            worst = max(worst, 0.0 if y.shape == z.shape and (y == z).all() else math.inf)
            continue
        y, z = y.astype(np.float64), z.astype(np.float64)
        if y.shape != z.shape or (np.isfinite(y) != np.isfinite(z)).any():
            return math.inf
        if y.size:
            y, z = np.nan_to_num(y, posinf=0, neginf=0), np.nan_to_num(z, posinf=0, neginf=0)
            worst = max(worst, np.abs(y - z).max() / max(np.abs(y).max(), 1e-30))
    return worst


def same_signature(original, small):
    check(original.ir_version == small.ir_version, "ir_version changed")
    # Functions that hold layers stand in the place of their calls, and bring the operators that they are written in.
    kept, imported = list(small.functions), list(small.opset_import)
    check(kept == [f for f in original.functions if f in kept], "functions changed")
    same = imported == list(original.opset_import)
    check(same or len(kept) < len(original.functions) and all(o in imported for o in original.opset_import), "opset_import changed")
    check(fed(original.graph) == fed(small.graph), "graph inputs changed")
    check(list(original.graph.output) == list(small.graph.output), "graph outputs changed")


def runs(model, given):
    """Why ONNX Runtime does not run it; none if it does."""
    try:
        session(model, LEVELS[-1]).run(None, given)
    except Exception as error:  # whatever ONNX Runtime says of it
        return str(error).splitlines()[0]
    return None


def passes_checker(path):
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        return str(error).splitlines()[0]
    return None


def judge(original_path, small_path, report, known, calibrated):
    """What was checked and how far outputs differ; raises Failed where something is wrong."""
    complaint = passes_checker(small_path)
    if complaint is not None:
        check(passes_checker(original_path) is not None, f"onnx.checker: {complaint}")
    original, small = onnx.load(original_path), onnx.load(small_path)
    same_signature(original, small)
    given = feeds(original.graph, known)
    before, after = runs(original, given), runs(small, given)
    check(before is not None or after is None, f"ONNX Runtime no longer runs it: {after}")
    wide = {name: x.astype(np.float32) if "float" in str(x.dtype) else x for name, x in given.items()}
    if len(small.functions) < len(original.functions):
        # ONNX Runtime knows what functions mean.
        inlined = without_functions(original)
        wanted, found = (session(m).run(None, given) for m in (original, inlined))
        check(difference(wanted, found) <= OUTPUT_TOLERANCE, "the bodies of functions in their place compute something else")
        original = inlined
    plain, narrow = widen(original), widen(small)
    reference = Reference(plain, narrow, calibrated)
    check_errors(reference, report)
    try:
        wanted = session(reference.model).run(None, wide)
    except Exception as error:
        raise NoReference(f"{len(reference.replaced)} kernels checked, outputs not, as ONNX Runtime does not run the model") from error
    quantised = any(n.op_type in QUANTISED for n in original.graph.node)
    worst = 0.0
    for level in (LEVELS[0], LEVELS[-1]):
        worst = max(worst, difference(wanted, session(narrow, level).run(None, wide)))
    bound = QUANTISED_TOLERANCE if quantised else OUTPUT_TOLERANCE
    check(worst <= bound, f"outputs differ by {worst:.1e} from the reference")
    finite = all(np.isfinite(y).all() for y in wanted if np.asarray(y).dtype.kind == "f")
    check(finite, "the reference is not finite: a poor model for this corpus")
    return f"{len(reference.replaced)} layers by impulses", worst
