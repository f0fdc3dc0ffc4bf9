# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2"]
# ///
"""Times onnx-jmd against numpy.linalg.svd on the same matrices with the same number of threads.

    uv run tools/bench_speed.py [--runs 3] [--threads N] [--binary target/release/onnx-jmd] [--scaling]

The model is ResNet-34 with random weights (tools/make_models.py); the time of a decomposition does not depend on the
spectrum. onnx-jmd is timed as a whole process: reading, grouping, decomposing, choosing ranks and writing at
--ratio 22 --no-verify. numpy is timed inside `svd(full_matrices=False)` alone, in float64, and each matrix is the
one that the paper's method decomposes: a kernel (kh*in × kw*out) by itself, or the members of a group side by side
(shared first factor) or on top of each other (shared last factor); Bi-JSVD has both. onnx-jmd analyses every
candidate before it chooses ranks, whichever it leaves whole, so numpy gets every candidate: the groups are those
that the binary reports for --rank-rate 0.04, where all are decomposed. The two take turns, one run each. Run it on an
idle machine: numpy's threads wait for each other in a loop, and other work on the cores slows them many times over.

`--scaling` prints seconds against the number of groups for ResNet-18, 34, 50 and 101 at --ratio 4 instead.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, tempfile, time

SCHEMES = ["separate", "ljsvd", "rjsvd-1", "rjsvd-2", "bi-jsvd"]
# numpy and onnx are imported in child processes only: a process inherits its parent's peak of memory.


def numpy_seconds(path, groups):
    """Child process: seconds in numpy.linalg.svd for all matrices of all groups."""
    import numpy as np, onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    weights = {t.name: t for t in model.graph.initializer}
    kernels = {n.name: weights[n.input[1]] for n in model.graph.node if n.op_type == "Conv"}

    def matrix(name):
        kernel = numpy_helper.to_array(kernels[name]).astype(np.float64)
        out, inputs, kh, kw = kernel.shape
        return kernel.transpose(2, 1, 3, 0).reshape(kh * inputs, kw * out)

    seconds = 0.0
    for group in groups:
        members = [matrix(name) for name in group["members"]]
        for stack in group["stacks"]:
            stacked = np.concatenate(members, axis=stack)
            start = time.perf_counter()
            np.linalg.svd(stacked, full_matrices=False)
            seconds += time.perf_counter() - start
    print(seconds)


# Axis along which a scheme joins the members of a group; both for Bi-JSVD.
STACKS = {"separate": [0], "ljsvd": [1], "rjsvd-1": [0], "rjsvd-2": [0], "bi-jsvd": [1, 0]}


def run(command, **options):
    """Wall seconds and peak resident bytes of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], **options)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {' '.join(map(str, command))}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Bench:
    def __init__(self, args, folder):
        self.binary, self.threads, self.folder = args.binary, args.threads, folder
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        self.environment = os.environ | dict.fromkeys(names, str(self.threads))

    def model(self, depth):
        script = pathlib.Path(__file__).with_name("make_models.py")
        run([sys.executable, script, self.folder, "--depth", depth], stdout=subprocess.DEVNULL)
        return self.folder / f"resnet{depth}.onnx"

    def ours(self, path, *options):
        """Seconds, peak bytes and the report of one run."""
        report = self.folder / "report.json"
        # numpy is given the convolutions alone, and plain weights; a dry run would calibrate.
        plain = ("--calib", "none", "--exclude", "^fc$")
        command = [self.binary, path, *options, *plain, "--quiet", "--threads", self.threads, "--json", report]
        return *run(command), json.loads(report.read_text())

    def candidates(self, path, scheme):
        """What the binary decomposes together when it leaves nothing whole."""
        report = self.ours(path, "--dry-run", "--rank-rate", 0.04, "--scheme", scheme)[2]
        left = [row for row in report["left_alone"] if "--exclude" not in row["reason"]]
        if left:
            sys.exit(f"{scheme} leaves convolutions whole: {left}")
        return [{"members": g["members"], "stacks": STACKS[g["scheme"]]} for g in report["groups"]]

    def numpy(self, path, groups):
        command = [sys.executable, __file__, "--numpy", str(path)]
        done = subprocess.run(command, input=json.dumps(groups), capture_output=True, text=True, env=self.environment)
        if done.returncode:
            sys.exit(done.stderr)
        return float(done.stdout)


def against_numpy(bench, runs, schemes):
    path = bench.model(34)
    groups = {scheme: bench.candidates(path, scheme) for scheme in schemes}
    ours, theirs = {s: [] for s in schemes}, {s: [] for s in schemes}
    for turn in range(runs):
        for scheme in schemes:
            options = (bench.folder / "out.onnx", "--ratio", 22, "--scheme", scheme, "--no-verify")
            sides = [lambda: ours[scheme].append(bench.ours(path, *options)),
                     lambda: theirs[scheme].append(bench.numpy(path, groups[scheme]))]
            for side in sides if turn % 2 == 0 else reversed(sides):
                side()
    size = path.stat().st_size
    print(f"ResNet-34, {size / 1e6:.1f} MB, --ratio 22, {bench.threads} threads, medians of {runs} runs (least–most)\n")
    print("| scheme | matrices | numpy.linalg.svd, s | onnx-jmd, s | numpy ÷ onnx-jmd, medians | and least "
          "| peak memory ÷ file | parameter ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for scheme in schemes:
        seconds = [run[0] for run in ours[scheme]]
        memory = statistics.median(run[1] for run in ours[scheme]) / size
        ratio = ours[scheme][0][2]["totals"]["parameters"]["ratio"]
        matrices = sum(len(g["stacks"]) for g in groups[scheme])
        quotients = [f"{of(theirs[scheme]) / of(seconds):.1f}" for of in (statistics.median, min)]
        cells = [scheme, matrices, spread(theirs[scheme]), spread(seconds), *quotients, f"{memory:.1f}", f"{ratio:.3f}"]
        print(f"| {' | '.join(map(str, cells))} |")


def spread(seconds):
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"


def scaling(bench, runs):
    print(f"--ratio 4 --scheme ljsvd, {bench.threads} threads, medians of {runs} runs (least–most)\n")
    print("| network | file, MB | convolutions | groups | onnx-jmd, s | s a group | peak memory ÷ file |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for depth in (18, 34, 50, 101):
        path = bench.model(depth)
        groups = bench.candidates(path, "ljsvd")
        options = (bench.folder / "out.onnx", "--ratio", 4, "--scheme", "ljsvd", "--no-verify")
        measured = [bench.ours(path, *options) for _ in range(runs)]
        seconds, size = [m[0] for m in measured], path.stat().st_size
        memory = statistics.median(m[1] for m in measured) / size
        convs = sum(len(g["members"]) for g in groups)
        each = statistics.median(seconds) / len(groups)
        cells = [f"{size / 1e6:.1f}", convs, len(groups), spread(seconds), f"{each:.3f}", f"{memory:.1f}"]
        print(f"| ResNet-{depth} | {' | '.join(map(str, cells))} |", flush=True)
        path.unlink()


def main():
    if sys.argv[1:2] == ["--numpy"]:
        numpy_seconds(sys.argv[2], json.load(sys.stdin))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/onnx-jmd"))
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--scaling", action="store_true", help="time against the number of groups instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, pathlib.Path(folder))
        if args.scaling:
            scaling(bench, args.runs)
        else:
            against_numpy(bench, args.runs, args.schemes.split(","))


if __name__ == "__main__":
    main()
