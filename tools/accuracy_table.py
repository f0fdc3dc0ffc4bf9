# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Top-1 by ratio and scheme, for any classifier and images: a Markdown table on standard output.

    python tools/accuracy_table.py fixtures/fashion-resnet.onnx --images fixtures/fashion-test-images.npy \\
        --labels fixtures/fashion-test-labels.npy [--ratios 1.5,2,3,4] [--schemes separate,ljsvd] [-- FURTHER OPTIONS]

Each cell is one run of the binary with --images and --labels: percent of right classes after, and in the heading
before. `-` is a ratio that the scheme cannot reach. What stands after `--` is passed on to the binary.
"""
import argparse, json, subprocess, sys, tempfile, pathlib

SCHEMES = "separate,ljsvd,rjsvd-1,rjsvd-2,bi-jsvd"
UNREACHABLE = 5


def main():
    ours, _, further = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--ratios", default="1.25,1.5,2,3,4,6,8")
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--binary", default="target/release/onnx-jmd")
    args = parser.parse_args(ours.split())
    ratios = args.ratios.split(",")
    before, rows = None, []
    with tempfile.TemporaryDirectory() as folder:
        for scheme in args.schemes.split(","):
            cells = []
            for ratio in ratios:
                command = [args.binary, args.model, pathlib.Path(folder) / "out.onnx", "--ratio", ratio, "--scheme", scheme,
                           "--images", args.images, "--labels", args.labels, "--quiet", "--json", "-", *further.split()]
                run = subprocess.run(command, capture_output=True, text=True)
                if run.returncode == UNREACHABLE:
                    cells.append("-")
                    continue
                if run.returncode:
                    sys.exit(run.stderr.strip())
                score = json.loads(run.stdout)["score"]
                before = score["top1_before"]
                cells.append(f"{100 * score['top1_after']:.1f}")
            rows.append(f"| {scheme} | " + " | ".join(cells) + " |")
    print(f"| top-1 %, original {100 * before:.1f} | " + " | ".join(f"{r}×" for r in ratios) + " |")
    print("|---|" + "---|" * len(ratios))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
