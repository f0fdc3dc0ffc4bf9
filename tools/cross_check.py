# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1"]
# ///
"""Checks what onnx-jmd writes with onnx.checker, ONNX Runtime and numpy, which share no code with it.

    uv run tools/cross_check.py MODEL.onnx ... [--binary target/release/onnx-jmd] [--ratio 2] [--schemes ljsvd,...]

For each model and scheme
    file        onnx.checker accepts it; opset, IR version, graph inputs and outputs are the original's
    size        parameters counted here equal the report's, before and after, and their ratio lies in [R, 1.01 R]
    sharing     a shared factor is one initializer that all members of its group read, and nobody else
    factors     kernels multiplied out here miss the originals by the error that the report states
    bias        a folded batch norm leaves the bias computed here
    outputs     at every optimisation level, ONNX Runtime computes what it computes for the original with its decomposed
                kernels replaced by the products
Prints one line a model and scheme; exits 1 if any check fails.
"""
import argparse, json, pathlib, re, subprocess, sys, tempfile
from collections import Counter
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

SCHEMES = ["separate", "ljsvd", "rjsvd-1", "rjsvd-2", "bi-jsvd"]
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
# Of the largest output: float32 rounding through some fifty layers, summed in another order.
OUTPUT_TOLERANCE = 5e-4
# Of the reported reconstruction error, which is of the same float32 factors: rounding of float64 sums only.
ERROR_TOLERANCE = 1e-6
# Of the optimum that Eckart and Young's theorem gives for one chain; the factors are rounded to float32.
OPTIMUM_TOLERANCE = 1e-6
# Of the largest bias: one float32 rounding, and the scale's own.
BIAS_TOLERANCE = 1e-6


class Failed(Exception):
    pass


def check(holds, message):
    if not holds:
        raise Failed(message)


def constants(model):
    """Values of initializers and Constant nodes by name."""
    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors |= {node.output[0]: a.t for a in node.attribute if a.name == "value"}
    return tensors


def aliases(model):
    """The source of each value that an Identity only renames."""
    return {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity"}


def value(model, name):
    renamed, tensors = aliases(model), constants(model)
    while name in renamed:
        name = renamed[name]
    return numpy_helper.to_array(tensors[name]).astype(np.float64)


def parameters(model):
    sizes = (int(np.prod(t.dims)) for t in constants(model).values() if t.data_type in FLOATS)
    return sum(sizes)


def fed(graph):
    """Graph inputs without initializers, as name and type."""
    stored = {t.name for t in graph.initializer}
    return [i for i in graph.input if i.name not in stored]


def compose(first, second):
    """The kernel of `second` after `first`, axes out, in, kh, kw."""
    out, _, kh2, kw2 = second.shape
    _, inputs, kh1, kw1 = first.shape
    kernel = np.zeros((out, inputs, kh1 + kh2 - 1, kw1 + kw2 - 1))
    for y1, x1 in np.ndindex(kh1, kw1):
        for y2, x2 in np.ndindex(kh2, kw2):
            kernel[:, :, y1 + y2, x1 + x2] += second[:, :, y2, x2] @ first[:, :, y1, x1]
    return kernel


class Rewritten:
    """The nodes that stand for one convolution, found by their names."""

    def __init__(self, model, name):
        nodes = {n.name: n for n in model.graph.node}
        one, two = f"{name}/jmd_", (f"{name}/jmd_a_", f"{name}/jmd_b_")
        prefixes = [p for p in (one, *two) if p + "first" in nodes]
        check(prefixes in ([one], [*two]), f"no nodes for '{name}'")
        self.chains = [(nodes[p + "first"], nodes[p + "second"]) for p in prefixes]
        tensors = constants(model)
        kernels = [[numpy_helper.to_array(tensors[n.input[1]]).astype(np.float64) for n in chain] for chain in self.chains]
        self.kernel = sum(compose(*pair) for pair in kernels)
        biases = [n.input[2] for chain in self.chains for n in chain if len(n.input) > 2]
        check(len(biases) <= 1, f"'{name}' has {len(biases)} biases")
        self.bias = tensors[biases[0]] if biases and biases[0].endswith("/jmd_bias") else None
        self.weights = [n.input[1] for chain in self.chains for n in chain]
        self.output = self.chains[0][-1].output[0] if len(prefixes) == 1 else nodes[f"{name}/jmd_add"].output[0]


def batch_norm(model, conv):
    """Scale and shift a channel of the batch norm behind a convolution, and its node."""
    readers = [n for n in model.graph.node if conv.output[0] in n.input]
    check(len(readers) == 1 and readers[0].op_type == "BatchNormalization", f"no batch norm behind '{conv.name}'")
    node = readers[0]
    gamma, beta, mean, variance = (value(model, i) for i in node.input[1:5])
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - scale * mean, node


def reference(original, small, groups):
    """The original with the products of the written factors as kernels. Checks factors and biases on the way."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    convs = {n.name or f"Conv({n.output[0]})": n for n in model.graph.node if n.op_type == "Conv"}
    for group in groups:
        lost = energy = 0.0
        kernels = []
        for name in group["members"]:
            conv, new = convs[name], Rewritten(small, name)
            kernel = value(original, conv.input[1])
            if new.bias is not None:
                scale, shift, norm = batch_norm(original, conv)
                kernel = kernel * scale[:, None, None, None]
                bias = shift + (scale * value(original, conv.input[2]) if len(conv.input) > 2 else 0)
                written = numpy_helper.to_array(new.bias)
                close = np.abs(written - bias).max() <= BIAS_TOLERANCE * np.abs(bias).max()
                check(close, f"'{name}': folded bias differs by {np.abs(written - bias).max():.1e}")
                model.graph.initializer.append(numpy_helper.from_array(written, f"{name}/reference_bias"))
                conv.input[2:] = [f"{name}/reference_bias"]
                conv.output[0] = norm.output[0]
                model.graph.node.remove(norm)
            check(new.output == conv.output[0], f"'{name}' writes {new.output}, not {conv.output[0]}")
            product = new.kernel.astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(product, f"{name}/reference_kernel"))
            conv.input[1] = f"{name}/reference_kernel"
            kernels.append(kernel)
            lost += np.sum((kernel - new.kernel) ** 2)
            energy += np.sum(kernel**2)
        error, stated = np.sqrt(lost / energy), group["reconstruction_error"]
        if len(group["ranks"]) == 1:
            best = optimum(kernels, group["scheme"], group["ranks"][0])
            message = f"{group['group']}: error {error:.9f} is more than the optimum's {best:.9f}"
            check(error <= best * (1 + OPTIMUM_TOLERANCE) + 1e-7, message)
        close = abs(error - stated) <= ERROR_TOLERANCE * stated + 1e-7
        check(close, f"{group['group']}: factors miss by {error:.8f}, reported {stated:.8f}")
    drop_stale(model.graph)
    return model


def optimum(kernels, scheme, rank):
    """Least relative error of any factors of this rank: the singular values of the stacked matrices beyond it."""
    matrices = [k.transpose(2, 1, 3, 0).reshape(k.shape[2] * k.shape[1], -1) for k in kernels]
    values = np.linalg.svd(np.concatenate(matrices, axis=1 if scheme == "ljsvd" else 0), compute_uv=False)
    return np.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2))


def drop_stale(graph):
    """Removes descriptions of values that the reference no longer makes."""
    made = {o for n in graph.node for o in n.output}
    kept = [v for v in graph.value_info if v.name in made]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def check_sharing(small, groups):
    readers = Counter(i for n in small.graph.node for i in n.input)
    stored = Counter(t.name for t in small.graph.initializer)
    check(max(stored.values()) == 1, "an initializer is stored twice")
    expected = set()
    for group in groups:
        members = [Rewritten(small, name) for name in group["members"]]
        columns = list(zip(*(m.weights for m in members)))
        shared = [column for column in columns if "/jmd_shared_" in column[0]]
        wanted = len(group["ranks"]) if group["shared"] else 0
        check(len(shared) == wanted, f"{group['group']}: {len(shared)} shared factors, not {wanted}")
        for column in shared:
            check(len(set(column)) == 1, f"{group['group']}: members read {sorted(set(column))}")
            count = readers[column[0]]
            check(count == len(members), f"'{column[0]}' has {count} readers, not {len(members)}")
            check(column[0] not in expected, f"'{column[0]}' serves two groups")
            expected.add(column[0])
    found = {name for name in stored if "/jmd_shared_" in name}
    check(found == expected, f"shared initializers of no group: {sorted(found - expected)}")
    contents = Counter(t.raw_data for t in small.graph.initializer if "/jmd_" in t.name and len(t.raw_data) > 1024)
    check(not contents or max(contents.values()) == 1, "equal factors are stored under two names")


def check_file(original, small):
    for field in ("ir_version", "opset_import", "functions"):
        check(getattr(original, field) == getattr(small, field), f"{field} changed")
    check(fed(original.graph) == fed(small.graph), "graph inputs changed")
    check(list(original.graph.output) == list(small.graph.output), "graph outputs changed")
    check("onnx_jmd.version" in {p.key for p in small.metadata_props}, "no onnx_jmd.version in metadata_props")


def inputs(graph):
    """Seeded normal images, two where the batch is open; 64 on other open axes."""
    rng = np.random.default_rng(0)
    feeds = {}
    for entry in fed(graph):
        dims = [d.dim_value or (64 if axis else 2) for axis, d in enumerate(entry.type.tensor_type.shape.dim)]
        dtype = helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        feeds[entry.name] = rng.standard_normal(dims).astype(dtype)
    return feeds


def outputs(model, level, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def only_convolutions(graph):
    """Leaves whole what is no Conv of one group whose kernel is an initializer: what is multiplied out here are kernels of four axes, as
    they are stored. tools/corpus.py judges all operators."""
    behind = {n.output[0] for n in graph.node if n.op_type in ("Cast", "DequantizeLinear")}
    other = lambda n: n.op_type == "Conv" and (n.input[1] in behind or any(a.name == "group" and a.i > 1 for a in n.attribute))
    others = [n.name or f"{n.op_type}({n.output[0]})" for n in graph.node
              if n.op_type in ("Gemm", "MatMul", "ConvTranspose") or other(n)]
    return ["--exclude", "^(" + "|".join(map(re.escape, others)) + ")$"] if others else []


def cross_check(path, scheme, ratio, binary, folder):
    target, report = folder / "small.onnx", folder / "report.json"
    command = [binary, path, target, "--ratio", ratio, "--scheme", scheme, "--no-verify", "--quiet", "--json", report,
               *only_convolutions(onnx.load(path).graph)]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    check(done.returncode == 0, f"exit code {done.returncode}: {done.stderr.strip()}")
    report = json.loads(report.read_text())
    onnx.checker.check_model(str(target), full_check=True)
    original, small = onnx.load(path), onnx.load(target)
    groups = report["groups"]

    check_file(original, small)
    change = report["totals"]["parameters"]
    before, after = parameters(original), parameters(small)
    check((before, after) == (change["before"], change["after"]), f"{before} → {after} parameters, reported {change}")
    check(ratio <= before / after <= 1.01 * ratio, f"ratio {before / after:.4f}")
    for key, file in (("before", path), ("after", target)):
        check(file.stat().st_size == report["totals"]["file_bytes"][key], f"file bytes {key}")
    check_sharing(small, groups)

    dense = reference(original, small, groups)
    feeds = inputs(original.graph)
    wanted = outputs(dense, LEVELS[0], feeds)
    errors = []
    for level in LEVELS:
        for y, found in zip(wanted, outputs(small, level, feeds), strict=True):
            errors.append(np.abs(y - found).max() / np.abs(y).max())
            check(errors[-1] <= OUTPUT_TOLERANCE, f"{level}: outputs differ by {errors[-1]:.1e}")
    convs = sum(len(g["members"]) for g in groups)
    return f"ratio {before / after:.4f}, {convs} convolutions in {len(groups)} groups, outputs within {max(errors):.1e}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=pathlib.Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/onnx-jmd"))
    parser.add_argument("--ratio", type=float, default=2.0)
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    args = parser.parse_args()
    failures = 0
    for path in args.models:
        for scheme in args.schemes.split(","):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    found = cross_check(path, scheme, args.ratio, args.binary, pathlib.Path(folder))
                line = f"ok    {path.name} {scheme}: {found}"
            except Failed as reason:
                failures += 1
                line = f"FAIL  {path.name} {scheme}: {reason}"
            except Exception as error:  # whatever onnx or ONNX Runtime makes of the file is a finding
                failures += 1
                line = f"FAIL  {path.name} {scheme}: {type(error).__name__}: {error}"
            print(line, flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
