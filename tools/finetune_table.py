# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1"]
# ///
"""Does sharing factors pay once a compressed network is trained further? Top-1 before and after, scheme by scheme.

    apt-get install dataset-fashion-mnist
    uv run tools/finetune_table.py --json finetune.json [--loss distill|labels] [--seeds 1] [--epochs 3] [--samples 25600]
    uv run tools/finetune_table.py --json finetune.json --print [FILE...]

Each scheme compresses the network in fixtures/ by its plain weights (--calib none) and calibrated; tools/finetune.py then
trains each file in the same way: the same images in the same order, the same steps, the same rate. Ratios count
parameters, each stored tensor once, so that the schemes of one ratio have equally many. A ratio that a scheme cannot
reach becomes the largest that it can. Top-1 is that of ONNX Runtime on the 10,000 test images. "- separate" is the
difference to `separate` at the same ratio and start, in points; with several seeds it is their mean, after which their
range follows, as it does for "after". The control is the original network, trained in the same way.

Prints a Markdown table. The JSON file is written after every row, and rows that it holds are not computed again; settings
other than its own are refused. --print only prints, the rows of further files as well: two processes may share the work
(--starts original,plain and --starts calibrated, each with OMP_NUM_THREADS=1 on two cores).

    --loss distill       the original network's scores on the images, no labels; or labels
    --lr RATES           for all, and after it for some: 3e-3,calibrated:8=3e-4,original=3e-4 (the default). What is hardly
                         damaged is best trained slowly, what guesses fast; all schemes of one ratio and start alike
    --seeds N            that many trainings a row (order of the images, mirrors and shifts)
    --samples N          that many of the training images, the same ones for all
    --train-images X.npy --train-labels Y.npy, --test-images, --test-labels   instead of Fashion-MNIST
    --model, --calib, --ratios 8,22, --starts original,plain,calibrated, --schemes separate,ljsvd,…
    --work DIR           keeps compressed files and what calibration found out; else they are made anew
    --binary FILE        target/release/onnx-jmd unless given
"""
import argparse, gzip, json, os, pathlib, re, subprocess, sys, tempfile, time
import numpy as np, torch
import finetune
from finetune import Refused

DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")
NOTHING_TO_DO, UNREACHABLE = 4, 5
SETTINGS = ("model", "loss", "epochs", "samples", "lr", "batch", "bf16", "augment")


def idx(name, header, shape):
    path = DATA / name
    return finetune.read(path, lambda p: np.frombuffer(gzip.open(p).read(), np.uint8, offset=header).reshape(shape))


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", required=True)
    parser.add_argument("--print", nargs="*", metavar="FILE")
    parser.add_argument("--model", default="fixtures/fashion-resnet.onnx")
    parser.add_argument("--calib", default="fixtures/fashion-calib-images.npy")
    parser.add_argument("--ratios", default="8,22")
    parser.add_argument("--starts", default="original,plain,calibrated")
    parser.add_argument("--schemes", default="separate,ljsvd,rjsvd-1,rjsvd-2,bi-jsvd,auto")
    parser.add_argument("--train-images")
    parser.add_argument("--train-labels")
    parser.add_argument("--test-images")
    parser.add_argument("--test-labels")
    parser.add_argument("--loss", choices=["distill", "labels"], default="distill")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=25600)
    parser.add_argument("--lr", default="3e-3,calibrated:8=3e-4,original=3e-4")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--no-augment", dest="augment", action="store_false")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--binary", default="target/release/onnx-jmd")
    return parser.parse_args()


def rate(text, start, ratio):
    """Of '3e-3,calibrated:8=3e-4' what holds for this start and ratio."""
    first, *others = text.split(",")
    named = dict(other.split("=") for other in others)
    return float(named.get(f"{start}:{ratio:g}", named.get(start, first)))


def data(args):
    """Training and test images, each with labels."""
    def pair(images, labels, names, count):
        if images:
            images = finetune.Images(finetune.read(images, np.load))
            labels = finetune.read(labels, np.load) if labels else None
        else:
            images = finetune.Images(idx(names[0], 16, (count, 1, 28, 28)))
            labels = idx(names[1], 8, (count,))
        if labels is not None and labels.shape != (len(images),):
            raise Refused(f"{len(images)} images, but labels of shape {list(labels.shape)}")
        return images, labels
    train = pair(args.train_images, args.train_labels, ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"), 60000)
    test = pair(args.test_images, args.test_labels, ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"), 10000)
    if test[1] is None or (train[1] is None and args.loss == "labels"):
        raise Refused("labels of the test images are needed, and of the training images with --loss labels")
    chosen = np.sort(np.random.default_rng(0).permutation(len(train[0]))[:args.samples])
    images = finetune.Images(train[0].pixels[chosen])
    return images, None if train[1] is None else torch.from_numpy(train[1][chosen].astype(np.int64)), test


def compress(args, work, ratio, start, scheme):
    """The compressed file and what the binary reports of it; None if there is nothing to compress."""
    path = work / f"{pathlib.Path(args.model).stem}-{scheme}-{start}-{ratio:g}.onnx"
    report = path.with_suffix(".json")
    if report.exists() and path.exists():
        return path, json.loads(report.read_text())
    calib = ["--calib", "none"] if start == "plain" else ["--calib", args.calib, "--cache", str(work / "cache")]
    asked = f"{ratio:g}"
    for _ in range(2):
        run = subprocess.run([args.binary, args.model, str(path), "--ratio", asked, "--scheme", scheme, *calib, "--quiet",
                              "--json", "-"], capture_output=True, text=True)
        largest = re.search(r"the largest for this model .* is ([\d.]+);", run.stderr)
        if run.returncode != UNREACHABLE or not largest:
            break
        asked = largest[1]
    if run.returncode in (NOTHING_TO_DO, UNREACHABLE):
        return None
    if run.returncode:
        raise Refused(run.stderr.strip())
    totals = json.loads(run.stdout)["totals"]
    result = {"reached": totals["parameters"]["ratio"], "parameters": totals["parameters"]["after"]}
    report.write_text(json.dumps(result))
    return path, result


def measure(args, report, save, work):
    images, labels, (test, test_labels) = data(args)
    original = finetune.load(args.model)
    teacher = finetune.Network(original)
    images.fit(teacher, "the training images")
    test.fit(teacher, "the test images")
    remembered = {}
    places = [(1.0, "original", "original")] if "original" in args.starts else []
    places += [(ratio, start, scheme) for ratio in args.ratios for start in args.starts if start != "original"
               for scheme in args.schemes]
    for seed in range(args.seeds):
        remembered.clear()
        for ratio, start, scheme in places:
            key = {"ratio": ratio, "start": start, "scheme": scheme, "seed": seed}
            if any(key.items() <= row.items() for row in report["rows"]):
                continue
            made = (args.model, {"reached": 1.0, "parameters": None}) if start == "original" else \
                compress(args, work, ratio, start, scheme)
            if made is None:
                print(f"{scheme}, {start}, {ratio:g}×: out of reach", file=sys.stderr, flush=True)
                continue
            path, facts = made
            model = finetune.load(path)
            network = finetune.Network(model)
            finetune.agree(network, path, images, str(path))
            tuned = work / f"tuned-{seed}-{pathlib.Path(path).name}"
            row = key | facts | {"lr": rate(args.lr, start, ratio), "after": None,
                                 "before": finetune.top1(path, network, test, test_labels)}
            begin = time.time()
            try:
                row["losses"] = finetune.train(network, images, labels, teacher if args.loss == "distill" else None, args.epochs,
                                               row["lr"], args.batch, seed, args.augment, args.augment, args.bf16, remembered)
                row["seconds"] = time.time() - begin
                finetune.write(network, model, tuned, images)
                row["after"] = finetune.top1(tuned, network, test, test_labels)
            except Refused as refusal:
                row["refused"] = str(refusal)
            report["rows"].append(row)
            save()
            print(f"{scheme}, {start}, {ratio:g}×, seed {seed}: {percent(row['before'])} → {percent(row['after'])} %, "
                  f"{time.time() - begin:.0f} s", file=sys.stderr, flush=True)


def percent(share):
    return "-" if share is None else f"{100 * share:.2f}"


def spread(values, sign=""):
    """The mean, and the range of several."""
    values = [100 * v for v in values]
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{sign}.2f} to {max(values):{sign}.2f})"


def table(report):
    print("| ratio | start | scheme | top-1 % before | after | - separate | s |")
    print("|---|---|---|---|---|---|---|")
    key = lambda row: (row["ratio"], row["start"], row["scheme"])
    after = {key(row) + (row["seed"],): row["after"] for row in report["rows"] if row["after"] is not None}
    for place in dict.fromkeys(map(key, report["rows"])):
        rows = [row for row in report["rows"] if key(row) == place]
        done = [row for row in rows if row["after"] is not None]
        pairs = [(row["after"], after.get((*place[:2], "separate", row["seed"]))) for row in done]
        less = "" if place[2] in ("separate", "original") else spread([a - b for a, b in pairs if b is not None], "+")
        seconds = sum(row["seconds"] for row in done) / len(done) if done else 0
        print(f"| {rows[0]['reached']:.1f} | {place[1]} | {place[2]} | {percent(rows[0]['before'])} | "
              f"{spread([row['after'] for row in done])} | {less} | {seconds:.0f} |")


def main():
    args = arguments()
    try:
        args.ratios = [float(ratio) for ratio in args.ratios.split(",")]
        args.starts, args.schemes = args.starts.split(","), args.schemes.split(",")
        [rate(args.lr, start, ratio) for start in args.starts for ratio in args.ratios]
    except ValueError:
        sys.exit(f"--ratios {args.ratios}, --lr {args.lr}: expected numbers, and after the rate NAME=RATE or NAME:RATIO=RATE")
    settings = {name: getattr(args, name) for name in SETTINGS} | {"model": pathlib.Path(args.model).name}
    path = pathlib.Path(args.json)
    try:
        if path.exists() or args.print is not None:
            report = finetune.read(path, lambda p: json.loads(p.read_text()))
        else:
            report = {"settings": settings, "rows": []}
        for further in args.print or []:
            report["rows"] += finetune.read(further, lambda p: json.loads(pathlib.Path(p).read_text()))["rows"]
        if args.print is None:
            other = [name for name in SETTINGS if report["settings"].get(name) != settings[name]]
            if other:
                raise Refused(f"{path} was made with another {', '.join(other)}: give another file")
            def save():
                beside = path.with_name(f".{path.name}.tmp")
                beside.write_text(json.dumps(report, indent=1) + "\n")
                os.replace(beside, path)
            with tempfile.TemporaryDirectory() as folder:
                work = args.work or pathlib.Path(folder)
                work.mkdir(parents=True, exist_ok=True)
                measure(args, report, save, work)
    except Refused as refusal:
        sys.exit(str(refusal))
    table(report)


if __name__ == "__main__":
    main()
