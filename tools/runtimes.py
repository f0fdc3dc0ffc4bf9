# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1", "openvino==2026.4.1", "onnxsim==0.8.1", "onnxslim==0.1.98",
#   "onnxconverter-common==1.16.0", "sympy==1.14.0",
# ]
# ///
"""Runs compressed models in several runtimes and passes them through several tools, and says whether shared factors stay shared.

    uv run tools/runtimes.py MODEL.onnx ... [--binary target/release/onnx-jmd] [--ratio 2] [--out tools/runtimes.md]

Each model is compressed by --scheme auto, by --scheme ljsvd (rjsvd-2 where that shares nothing) and, where it has batch norms, by
--scheme rjsvd-2 with and without --keep-bn, which leaves a batch norm behind each shared factor. A runtime is right if it
computes what ONNX Runtime computes of the same file without optimisation. A tool is right if what it writes still loads and computes
that, to its own precision; a shared factor has stayed one if the file holds the bytes of each only once: the column gives the size of
what the tool writes in units of what it writes of the same model with every factor stored once for each layer that reads it.
"""
import argparse, logging, pathlib, re, subprocess, sys, tempfile, warnings
import numpy as np, onnx, onnxruntime, onnxsim, onnxslim, openvino
from onnxconverter_common import float16
from onnxruntime import quantization
from corpus_judge import difference, feeds
from cross_check import LEVELS

FILE = "file, in that with copies"
# Of the largest output: rounding; the half's; the quantizers' is reported and not judged.
EXACT, HALF = 5e-4, 2e-2


def ort(path, given, level=LEVELS[0]):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    runner = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return runner.run(None, cast(given, runner))


def cast(given, runner):
    """Inputs in the types that the model now asks for."""
    asked = {i.name: np.float16 if i.type == "tensor(float16)" else None for i in runner.get_inputs()}
    return {n: x.astype(asked[n]) if asked.get(n) else x for n, x in given.items()}


def vino(path, given):
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([given[i.get_any_name()] for i in compiled.inputs])
    return [found[o] for o in compiled.outputs]


RUNTIMES = {
    **{f"ONNX Runtime {onnxruntime.__version__}, {level.removeprefix('ORT_').replace('_', ' ').lower()}": (lambda p, g, level=level: ort(p, g, level)) for level in LEVELS},
    f"OpenVINO {openvino.__version__.split('-')[0]}": vino,
}


class Samples(quantization.CalibrationDataReader):
    def __init__(self, given):
        self.left = [given]

    def get_next(self):
        return self.left.pop() if self.left else None


def optimised(source, target, level, given):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def static(source, target, given, per_channel=False):
    ready = target.with_name("ready.onnx")
    quantization.quant_pre_process(source, ready, skip_symbolic_shape=True)
    quantization.quantize_static(ready, target, Samples(given), per_channel=per_channel)


# name: (what is done, precision of the result; none if reported only)
TOOLS = {
    f"onnxsim {onnxsim.__version__.lstrip('v')}": (lambda s, t, g: onnx.save(onnxsim.simplify(onnx.load(s))[0], t), EXACT),
    f"onnxslim {onnxslim.__version__}": (lambda s, t, g: onnx.save(onnxslim.slim(onnx.load(s)), t), EXACT),
    "onnxconverter-common 1.16.0 float16": (lambda s, t, g: onnx.save(float16.convert_float_to_float16(onnx.load(s)), t), HALF),
    "ONNX Runtime, file optimised, basic": (lambda s, t, g: optimised(s, t, "ORT_ENABLE_BASIC", g), EXACT),
    "ONNX Runtime, file optimised, all": (lambda s, t, g: optimised(s, t, "ORT_ENABLE_ALL", g), EXACT),
    "ONNX Runtime dynamic quantizer": (lambda s, t, g: quantization.quantize_dynamic(s, t), None),
    "ONNX Runtime static quantizer (QDQ)": (static, None),
    "ONNX Runtime static quantizer (QDQ), a scale a channel": (lambda s, t, g: static(s, t, g, True), None),
    "OpenVINO's own file": (lambda s, t, g: openvino.save_model(openvino.Core().read_model(str(s)), str(t.with_suffix(".xml")), compress_to_fp16=False), EXACT),
}


def readers(model):
    count = {}
    for node in model.graph.node:
        for name in node.input:
            count[name] = count.get(name, 0) + 1
    return count


def unshared(source, target):
    """The same with a copy of each shared factor for each layer that reads it; how many are shared, and what the copies hold."""
    model = onnx.load(source)
    count, stored = readers(model), {t.name: t for t in model.graph.initializer}
    copied = 0
    shared = [t for name, t in stored.items() if "/jmd_shared_" in name and count.get(name, 0) > 1]
    for tensor in shared:
        for number, node in enumerate(n for n in model.graph.node if tensor.name in n.input):
            if number == 0:
                continue
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = f"{tensor.name}_{number}"
            # One weight differs in its last bits, so that no tool finds the copies to be one.
            values = onnx.numpy_helper.to_array(copy).copy()
            copied += values.size
            for _ in range(number):
                values.flat[0] = np.nextafter(values.flat[0], values.dtype.type(np.inf))
            copy.CopyFrom(onnx.numpy_helper.from_array(values, copy.name))
            model.graph.initializer.append(copy)
            node.input[list(node.input).index(tensor.name)] = copy.name
    onnx.save(model, target)
    return len(shared), copied


def size(path):
    """A file, or OpenVINO's pair."""
    return sum(p.stat().st_size for p in (path, path.with_suffix(".xml"), path.with_suffix(".bin")) if p.exists())


def compress(binary, source, target, ratio, scheme, shapes):
    """`scheme` may carry options behind it."""
    shape = [o for n, d in shapes.items() for o in ("--input-shape", f"{n}:{','.join(map(str, d))}")]
    command = [binary, source, target, "--ratio", ratio, "--scheme", *scheme.split(), "--calib", "none", "--quiet", *shape, "--allow-more-macs"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    return done.stderr.strip()


def open_shapes(path):
    """Sizes for what an input leaves open."""
    model = onnx.load(path, load_external_data=False)
    stored = {t.name for t in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name not in stored and 0 in dims:
            found[value.name] = [d or (64 if axis > 1 else 1) for axis, d in enumerate(dims)]
    return found


def tool_row(step, bound, small, copies, copied, folder, given, wanted):
    """What a tool makes of the model and of the same with copies: verdict, size of one in that of the other, difference.

    The size is followed by '!' if the copies make the file no larger, or by less than half a byte a parameter of theirs.
    """
    made, other = folder / "tooled.onnx", folder / "tooled-copies.onnx"
    for path in (made, other):
        for suffix in (".onnx", ".xml", ".bin"):
            path.with_suffix(suffix).unlink(missing_ok=True)
    try:
        step(small, made, given)
        xml = made.with_suffix(".xml")
        worst = difference(wanted, [np.asarray(y) for y in (vino(xml, given) if xml.exists() else ort(made, given))])
        ok = bound is None or worst <= bound
        ratio = None
        if copies:
            step(copies, other, given)
            ratio = f"{size(made) / size(other):.2f}" + ("" if size(other) - size(made) > 0.5 * copied else "!")
    except Exception as error:  # whatever the tool says of the file is a finding
        return False, None, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return ok, ratio, f"{worst:.0e}"


def check_model(path, scheme, binary, ratio, cells):
    shapes = open_shapes(path)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        small, copies = folder / "small.onnx", folder / "copies.onnx"
        said = compress(binary, path, small, ratio, scheme, shapes)
        if not small.exists():
            print(f"{path.stem}, {scheme}: {said}", flush=True)
            return None
        shared, copied = unshared(small, copies)
        if scheme != "auto" and not shared:
            return None
        column = f"{path.stem}, {scheme}"
        given = feeds(onnx.load(small).graph, {"shapes": shapes})
        wanted = ort(small, given)
        put = lambda row, text: cells.setdefault(row, {}).__setitem__(column, text)
        put("shared factors", str(shared))
        put(FILE, f"{size(small) / size(copies):.2f}" if shared else "–")
        # The binary runs tract: the file against itself through another reader.
        tract = subprocess.run([str(binary), "verify", str(small), str(copies), "--max-difference", "1e-3", *[o for n, d in shapes.items() for o in ("--input-shape", f"{n}:{','.join(map(str, d))}")]],
                               capture_output=True, text=True)
        put("tract", "ok" if tract.returncode == 0 else f"FAIL: {tract.stderr.strip()[:80]}")
        for row, run in RUNTIMES.items():
            try:
                off = lambda file, wanted: difference(wanted, [np.asarray(y) for y in run(file, given)])
                worst = off(small, wanted)
                # A model that rounds differs by whole steps between runtimes, compressed or not.
                if EXACT < worst < 3 * off(path, ort(path, given)):
                    put(row, "fails on the original, too")
                    continue
                put(row, f"{'ok' if worst <= EXACT else 'FAIL'} {worst:.0e}")
            except Exception as error:  # whatever the runtime says of the file is a finding
                put(row, f"FAIL: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
        for row, (step, bound) in TOOLS.items():
            ok, kept, worst = tool_row(step, bound, small, copies if shared else None, copied, folder, given, wanted)
            if not ok and not tool_row(step, bound, path, None, 0, folder, given, ort(path, given))[0]:
                put(row, "fails on the original, too")
                continue
            put(row, f"{'ok' if ok else 'FAIL'} {worst}{f', size {kept}' if kept else ''}")
        for row in cells:
            print(f"{column:36} {row:48} {cells[row].get(column, '')}", flush=True)
        return column


def summary(cells, columns):
    """A line a runtime or tool: how many models are right, the largest difference, and how many keep their factors shared."""
    lines = ["| runtime or tool | right | largest difference | factors still shared |", "|---|---|---|---|"]
    for row, found in cells.items():
        if row in ("shared factors", FILE):
            continue
        given = [found[c] for c in columns if found.get(c, "fails").startswith(("ok", "FAIL"))]
        others = sum(found.get(c, "").startswith("fails") for c in columns)
        differences = [float(m[1]) for t in given if (m := re.search(r"(?:ok|FAIL) ([\d.e+-]+|inf)", t))]
        sizes = {c: t for c in columns if "size" in (t := found.get(c, ""))}
        lost = [c for c, t in sizes.items() if t.endswith("!")]
        kept = [c for c in sizes if c not in lost]
        text = f"{len(kept)} of {len(sizes)}" + (f" (not: {'; '.join(lost)})" if lost else "") if sizes else ""
        right = f"{sum(t.startswith('ok') for t in given)} of {len(given)}" + (f" ({others} more fail on the original, too)" if others else "")
        lines.append(f"| {row} | {right} | {max(differences):.0e} | {text} |" if differences else f"| {row} | {right} | | |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=pathlib.Path, nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/onnx-jmd"))
    parser.add_argument("--ratio", type=float, default=2.0)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    cells, columns = {}, []
    for path in args.models:
        norms = any(n.op_type == "BatchNormalization" for n in onnx.load(path, load_external_data=False).graph.node)
        for schemes in (["auto"], ["ljsvd", "rjsvd-2"], *([["rjsvd-2"], ["rjsvd-2 --keep-bn"]] if norms else [])):
            for scheme in schemes:
                column = check_model(path, scheme, args.binary, args.ratio, cells)
                if column:
                    columns.append(column)
                    break
    # A row a model, a column a runtime or tool.
    found = summary(cells, columns)
    rows = list(cells)
    lines = ["| model, scheme | " + " | ".join(rows) + " |", "|" + "---|" * (len(rows) + 1)]
    lines += [f"| {c} | " + " | ".join(cells[r].get(c, "").replace("|", "\\|") for r in rows) + " |" for c in columns]
    if args.out:
        args.out.write_text(HEAD.format(ratio=args.ratio, count=len(columns)) + "\n" + found + "\n" + "\n".join(lines) + "\n")
    print(found)
    sys.exit(1 if any("FAIL" in t for r in cells.values() for t in r.values()) else 0)


HEAD = """# Compressed models in runtimes and tools

Written by `tools/runtimes.py`; {count} compressed models at ratio {ratio:g}. Differences are of the largest output, from ONNX Runtime without
optimisation on the same file; those of quantizers are reported and not judged. `size`: what the tool writes, in units of what it writes
of the same model with every shared factor stored once for each layer; '!' says that the sharing is gone.
"""


if __name__ == "__main__":
    main()
