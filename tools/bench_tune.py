# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1", "torch==2.15.0"]
# ///
"""Speed of tuning against PyTorch, for the same job: the teacher's answers to shifted and mirrored images, the student's forward and
backward pass, and a step of Adam, on the processor and as many threads.

    uv run tools/bench_tune.py TEACHER.onnx SMALL.onnx [SMALL.onnx ...] --images IMAGES.npy [--preprocess imagenet] [--runs 3]

Ours is the binary's `tune`, PyTorch's is tools/finetune.py (channels last), one pass over the first images each, taken in turn in one
run. Of a student that is its own teacher, moved a little, all weights are trained. Prints images a second of both, medians of the
runs, and their ratio. In one pass next to nothing of the teacher's answers is known from before.
"""
import argparse, json, pathlib, statistics, subprocess, sys, tempfile
import numpy as np, onnx
from onnx import numpy_helper

TOOLS = pathlib.Path(__file__).resolve().parent
PRESETS = {"imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "0-1": ([], [])}


def moved(teacher, path):
    """The teacher with its weights moved a little, so that there is something to learn."""
    model, chance = onnx.load(teacher), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1:
            values = values * (1 + 0.01 * chance.standard_normal(values.shape)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]}: exit code {done.returncode}\n{done.stderr}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("teacher")
    parser.add_argument("students", nargs="*")
    parser.add_argument("--images", required=True)
    parser.add_argument("--preprocess", choices=PRESETS, default="imagenet")
    parser.add_argument("--binary", default="target/release/onnx-jmd")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    mean, std = PRESETS[args.preprocess]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shown, own = folder / "images.npy", folder / "teacher-moved.onnx"
        np.save(shown, np.load(args.images, mmap_mode="r")[:args.count])
        moved(args.teacher, own)

        def ours(student, everything):
            report = folder / "ours.json"
            run([args.binary, "tune", student, folder / "out.onnx", "--teacher", args.teacher, "--calib", shown, "--tune",
                 "1epochs", "--batch", args.batch, "--preprocess", args.preprocess, "--quiet", "--json", report,
                 *(["--tune-all"] if everything else [])])
            row = json.loads(report.read_text())["tuning"]["curve"][1]
            return row["step"] * args.batch / row["seconds"]

        def theirs(student):
            report = folder / "theirs.json"
            run([sys.executable, TOOLS / "finetune.py", student, folder / "out.onnx", "--teacher", args.teacher, "--images", shown,
                 "--epochs", 1, "--batch", args.batch, "--json", report,
                 *([f"--mean={','.join(map(str, mean))}", f"--std={','.join(map(str, std))}"] if mean else [])])
            report = json.loads(report.read_text())
            return args.count // args.batch * args.batch / report["seconds"]

        print(f"{'student':<28} {'ours':>10} {'PyTorch':>10} {'ratio':>7}   images a second, batch {args.batch}")
        for student, everything in [(own, True), *((s, False) for s in args.students)]:
            pairs = [(ours(student, everything), theirs(student)) for _ in range(args.runs)]
            a, b = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            ratio = statistics.median(p[0] / p[1] for p in pairs)
            print(f"{pathlib.Path(student).stem:<28} {a:>10.0f} {b:>10.0f} {ratio:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
