# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2"]
# ///
"""Time and peak memory of a model of more than 2 GiB from end to end: read, decomposed, verified, written.

    uv run tools/bench_large.py [--gib 2.2] [--of tables|convolutions] [--type float32|float16]
        [--binary target/release/onnx-jmd] [OPTION ...]

Two convolutions and as many tables of 64 MiB as it takes, which are left alone; or convolutions of 36 MiB in residual blocks alone, all
to be decomposed; half of that each in float16. In a file beside the model. An OPTION is one of onnx-jmd, instead of the ones here. Needs
twice as much room in the folder for temporary files.
"""
import argparse, os, pathlib, subprocess, sys, tempfile, time

CHANNELS, ROWS, WIDE = 64, 1 << 18, 1024
OPTIONS = {
    "tables": ["--rank-rate", "0.25", "--scheme", "ljsvd", "--calib", "none"],
    "convolutions": ["--ratio", "4", "--calib", "none"],
}


def make(path, gib, of, dtype):
    """Child process: writes the model; a process that is started inherits its parent's peak of memory."""
    import onnx
    from onnx import helper

    nodes, tensors, inputs, outputs = {"tables": tables, "convolutions": convolutions}[of](gib, dtype)
    model = helper.make_model(helper.make_graph(nodes, "large", inputs, outputs, tensors), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path, save_as_external_data=True, location="large.data", size_threshold=1024)


def convolutions(gib, dtype):
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    chance, nodes, tensors, last = np.random.default_rng(0), [], [], "x"
    blocks = max(round(gib * (1 << 30) / (2 * np.dtype(dtype).itemsize * 9 * WIDE * WIDE)), 1)
    for block in range(blocks):
        inner = last
        for half in "ab":
            name = f"{half}{block}"
            # Of low rank and noise, as trained kernels are.
            left, right = chance.standard_normal((WIDE, 64), dtype=np.float32), chance.standard_normal((64, WIDE * 9), dtype=np.float32)
            kernel = (left @ right / 8 + 0.3 * chance.standard_normal((WIDE, WIDE * 9), dtype=np.float32)) * (0.5 / (3 * WIDE**0.5))
            tensors.append(numpy_helper.from_array(kernel.reshape(WIDE, WIDE, 3, 3).astype(dtype), f"kernel{name}"))
            nodes += [helper.make_node("Conv", [inner, f"kernel{name}"], [f"conv{name}"], f"conv{name}", pads=[1] * 4),
                      helper.make_node("Relu", [f"conv{name}"], [f"relu{name}"])]
            inner = f"relu{name}"
        nodes.append(helper.make_node("Add", [inner, last], [f"sum{block}"]))
        last = f"sum{block}"
    inputs = [helper.make_tensor_value_info("x", kind, [1, WIDE, 8, 8])]
    return nodes, tensors, inputs, [helper.make_tensor_value_info(last, kind, [1, WIDE, 8, 8])]


def tables(gib, dtype):
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    chance, nodes, tensors, last = np.random.default_rng(0), [], [], "x"
    for i in range(2):
        kernel = 0.05 * chance.standard_normal((CHANNELS, CHANNELS, 3, 3))
        tensors.append(numpy_helper.from_array(kernel.astype(dtype), f"kernel{i}"))
        nodes += [helper.make_node("Conv", [last, f"kernel{i}"], [f"conv{i}"], f"conv{i}", pads=[1] * 4),
                  helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"])]
        last = f"relu{i}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["mean"]), helper.make_node("Flatten", ["mean"], ["flat"])]
    last = "flat"
    for i in range(round(gib * (1 << 30) / (np.dtype(dtype).itemsize * CHANNELS * ROWS))):
        table = chance.standard_normal((ROWS, CHANNELS), dtype=np.float32)
        tensors.append(numpy_helper.from_array(table.astype(dtype), f"table{i}"))
        nodes += [helper.make_node("Gather", [f"table{i}", "row"], [f"row{i}"]),
                  helper.make_node("Add", [last, f"row{i}"], [f"sum{i}"])]
        last = f"sum{i}"
    inputs = [helper.make_tensor_value_info("x", kind, [1, CHANNELS, 16, 16]),
              helper.make_tensor_value_info("row", TensorProto.INT64, [1])]
    return nodes, tensors, inputs, [helper.make_tensor_value_info(last, kind, [1, CHANNELS])]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=2.2)
    parser.add_argument("--binary", default="target/release/onnx-jmd")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--of", choices=OPTIONS, default="tables")
    parser.add_argument("--type", choices=["float32", "float16"], default="float32")
    args, options = parser.parse_known_args()
    if args.make:
        return make(args.make, args.gib, args.of, args.type)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path = folder / "large.onnx"
        subprocess.run([sys.executable, __file__, "--make", path, "--gib", str(args.gib), "--of", args.of, "--type", args.type], check=True)
        size = sum(file.stat().st_size for file in folder.iterdir())
        begun = time.perf_counter()
        command = [args.binary, path, folder / "small.onnx", "--quiet", *(options or OPTIONS[args.of])]
        ours = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(ours.pid, 0)
        if status:
            sys.exit(f"exit code {os.waitstatus_to_exitcode(status)}")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"{size / 1e9:.2f} GB: {time.perf_counter() - begun:.1f} s, peak memory {peak / 1e9:.2f} GB, {peak / size:.2f} times the model")


if __name__ == "__main__":
    main()
