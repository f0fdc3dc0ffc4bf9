# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2"]
# ///
"""Time and peak memory of a model of more than 2 GiB from end to end: read, decomposed, verified, written.

    uv run tools/bench_large.py [--gib 2.2] [--binary target/release/onnx-jmd]

Two convolutions and as many tables of 64 MiB as it takes, in a file beside the model. Needs twice as much room in the folder for
temporary files.
"""
import argparse, os, pathlib, subprocess, sys, tempfile, time

CHANNELS, ROWS = 64, 1 << 18


def make(path, gib):
    """Child process: writes the model; a process that is started inherits its parent's peak of memory."""
    import numpy as np, onnx
    from onnx import TensorProto, helper, numpy_helper

    chance, nodes, tensors, last = np.random.default_rng(0), [], [], "x"
    for i in range(2):
        kernel = 0.05 * chance.standard_normal((CHANNELS, CHANNELS, 3, 3))
        tensors.append(numpy_helper.from_array(kernel.astype(np.float32), f"kernel{i}"))
        nodes += [helper.make_node("Conv", [last, f"kernel{i}"], [f"conv{i}"], f"conv{i}", pads=[1] * 4),
                  helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"])]
        last = f"relu{i}"
    nodes += [helper.make_node("GlobalAveragePool", [last], ["mean"]), helper.make_node("Flatten", ["mean"], ["flat"])]
    last = "flat"
    for i in range(round(gib * (1 << 30) / (4 * CHANNELS * ROWS))):
        table = chance.standard_normal((ROWS, CHANNELS), dtype=np.float32)
        tensors.append(numpy_helper.from_array(table, f"table{i}"))
        nodes += [helper.make_node("Gather", [f"table{i}", "row"], [f"row{i}"]),
                  helper.make_node("Add", [last, f"row{i}"], [f"sum{i}"])]
        last = f"sum{i}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 16, 16]),
              helper.make_tensor_value_info("row", TensorProto.INT64, [1])]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, CHANNELS])]
    model = helper.make_model(helper.make_graph(nodes, "large", inputs, outputs, tensors), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path, save_as_external_data=True, location="large.data", size_threshold=1024)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=2.2)
    parser.add_argument("--binary", default="target/release/onnx-jmd")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make(args.make, args.gib)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path = folder / "large.onnx"
        subprocess.run([sys.executable, __file__, "--make", path, "--gib", str(args.gib)], check=True)
        size = sum(file.stat().st_size for file in folder.iterdir())
        begun = time.perf_counter()
        ours = subprocess.Popen([args.binary, path, folder / "small.onnx", "--rank-rate", "0.25", "--scheme", "ljsvd", "--calib",
                                 "none", "--quiet"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(ours.pid, 0)
        if status:
            sys.exit(f"exit code {os.waitstatus_to_exitcode(status)}")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"{size / 1e9:.2f} GB: {time.perf_counter() - begun:.1f} s, peak memory {peak / 1e9:.2f} GB, {peak / size:.2f} times the model")


if __name__ == "__main__":
    main()
