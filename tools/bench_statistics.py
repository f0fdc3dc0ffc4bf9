# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1"]
# ///
"""Does it pay to estimate the statistics of batch norms anew before tuning?

    uv run tools/bench_statistics.py TEACHER.onnx SMALL.onnx --calib IMAGES.npy --images TEST.npy --labels LABELS.npy \\
        [--preprocess imagenet] [--tune 5epochs] [--count 1000]

SMALL is tuned twice by the binary: as it is, and with the mean and variance of every BatchNormalization those of what now arrives
there, one norm after the other, each behind the norms that were estimated before it. Prints
agreement with the teacher before tuning and top-1 after it.
"""
import argparse, json, pathlib, subprocess, sys, tempfile
import numpy as np, onnx, onnxruntime
from onnx import numpy_helper

PRESETS = {"imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "0-1": ([0.0], [1.0])}


def arriving(model, name, inputs):
    """Mean and variance of each channel of a value."""
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    del model.graph.output[-1]
    fixed = session.get_inputs()[0].shape[0]
    step = fixed if isinstance(fixed, int) else 1
    sums = []
    for at in range(0, len(inputs) // step * step, step):
        value = session.run([name], {session.get_inputs()[0].name: inputs[at:at + step]})[0].astype(np.float64)
        over = tuple(axis for axis in range(value.ndim) if axis != 1)
        sums.append([value.mean(over), (value * value).mean(over)])
    mean, square = np.mean(sums, axis=0)
    return mean, np.maximum(square - mean * mean, 0)


def estimated(path, to, inputs):
    """Writes the model with the statistics of every norm estimated; the number of norms."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    for node in norms:
        for name, values in zip(node.input[3:5], arriving(model, node.input[0], inputs)):
            old = numpy_helper.to_array(tensors[name])
            tensors[name].CopyFrom(numpy_helper.from_array(values.astype(old.dtype), name))
    onnx.save(model, to)
    return len(norms)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("teacher")
    parser.add_argument("small")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--preprocess", choices=PRESETS, default="imagenet")
    parser.add_argument("--tune", default="5epochs")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--binary", default="target/release/onnx-jmd")
    args = parser.parse_args()
    mean, std = (np.array(part, np.float32).reshape(-1, 1, 1) for part in PRESETS[args.preprocess])
    images = np.load(args.calib, mmap_mode="r")
    # Every tenth is held out by the binary, to judge by.
    images = images[[i for i in range(min(len(images), args.count)) if i % 10 != 9]]
    images = images[:, None] if images.ndim == 3 else images if images.shape[1] in (1, 3) else images.transpose(0, 3, 1, 2)
    inputs = (images.astype(np.float32) / 255 - mean) / std
    with tempfile.TemporaryDirectory() as folder:
        anew, tuned, report = (pathlib.Path(folder) / name for name in ("anew.onnx", "tuned.onnx", "report.json"))
        norms = estimated(args.small, anew, np.ascontiguousarray(inputs))
        print(f"{norms} batch norms, statistics of {len(inputs)} images")
        for name, model in (("as they are", args.small), ("estimated anew", anew)):
            done = subprocess.run([args.binary, "tune", model, tuned, "--teacher", args.teacher, "--calib", args.calib,
                                   "--preprocess", args.preprocess, "--tune", args.tune, "--images", args.images, "--labels",
                                   args.labels, "--quiet", "--json", report], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr.strip())
            said = json.loads(report.read_text())
            curve = said["tuning"]["curve"]
            print(f"{name}: agreement before tuning {100 * curve[0]['agreement']:.2f} %, "
                  f"top-1 after {args.tune} {100 * said['score']['top1_after']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
