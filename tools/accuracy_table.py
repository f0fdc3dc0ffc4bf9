# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Top-1 by ratio and scheme, for any classifier and images: a Markdown table on standard output, and a plot.

    python tools/accuracy_table.py fixtures/fashion-resnet.onnx --images fixtures/fashion-test-images.npy \\
        --labels fixtures/fashion-test-labels.npy --calib fixtures/fashion-calib-images.npy \\
        [--ratios 1.5,2,3,4] [--schemes separate,ljsvd] [--json FILE] [--svg FILE] [-- FURTHER OPTIONS]
    python tools/accuracy_table.py --from FILE [--baseline FILE] [--svg FILE]

Each cell is one run of the binary with --images and --labels: percent of right classes after, and in the heading
before. `-` is a ratio that the scheme cannot reach, an empty cell one that was not asked for. What stands after `--` is
passed on to the binary.

    --calib FILE|drawn   also a row a scheme calibrated on these images, or on drawn pictures; may be repeated
    --no-plain           no rows of plain weights (--calib none)
    --tune TIME|Nepochs  also a row a scheme and calibration of the same files tuned so (`onnx-jmd tune`), all alike;
    --tune-images FILE   on these images instead of those that were calibrated on
    --baseline FILE      also the rows of another tool on the same images, as tools/baseline_lagrangian.py --json
                         writes them; may be repeated
    --json FILE          the raw numbers, written after every row
    --from FILE          read raw numbers instead of running the binary; may be repeated to join rows
    --svg FILE           plot over the logarithm of the ratio that was reached; --title TEXT heads it
    --binary FILE        target/release/onnx-jmd unless given
"""
import argparse, html, json, math, pathlib, subprocess, sys, tempfile

SCHEMES = "separate,ljsvd,rjsvd-1,rjsvd-2,bi-jsvd,auto"
NOTHING_TO_DO, UNREACHABLE = 4, 5
SUFFIXES = {"plain": ", plain weights", "calibrated": ", calibrated", "drawn": ", drawn pictures", "tuned": ", tuned",
            "baseline": ""}

# Plot: Okabe and Ito's colours, some shifted to stand out from a light and a dark page, and a shape a line for those who
# see no colour; other tools are drawn in the colour of the text.
LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#cf8a00", "#3fa3e0"]
DARK = ["#3b8bd9", "#e8702a", "#1fb58c", "#d98fb9", "#e6a817", "#9bd6f7"]
SHAPES = ["M-3-3h6v6h-6z", "M0-4.2L4 3H-4z", "M0-4.4L4.4 0L0 4.4L-4.4 0z", "M-3.8-3.8L3.8 3.8M-3.8 3.8L3.8-3.8",
          "M0-4.4V4.4M-4.4 0H4.4", "M0 4.2L4-3H-4z"]
CIRCLE = "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 460, 48, 560, 60, 412
LABELS, LINE_HEIGHT, LONGEST = 584, 17, 21
STYLE = """
  svg { color: #1f2328; font: 12px system-ui, sans-serif }
  @LIGHT
  @media (prefers-color-scheme: dark) { svg { color: #e6edf3 } @DARK }
  text { fill: currentColor; stroke: none }
  .axis { stroke: currentColor; stroke-opacity: .15 }
  .original { stroke: currentColor; stroke-dasharray: 7 5 }
  .series path { fill: none; stroke-linejoin: round; stroke-linecap: round }
  .series .line { stroke-width: 2.4 }
  .series .mark { stroke-width: 1.4 }
  .plain .line { stroke-width: 1.2; stroke-dasharray: 5 4 }
  .plain .mark { stroke-width: 1 }
  .tuned .line { stroke-width: 3.4 }
  .drawn .line { stroke-width: 2; stroke-dasharray: .1 5 }
  .other { stroke: currentColor }
  .series .leader { stroke-width: .8; stroke-opacity: .55 }
"""


def arguments():
    ours, further = sys.argv[1:], []
    if "--" in ours:
        at = ours.index("--")
        ours, further = ours[:at], ours[at + 1:]
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--images")
    parser.add_argument("--labels")
    parser.add_argument("--ratios")
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--calib", action="append", default=[])
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--tune")
    parser.add_argument("--tune-images")
    parser.add_argument("--baseline", action="append", default=[])
    parser.add_argument("--from", action="append", default=[], dest="sources")
    parser.add_argument("--binary", default="target/release/onnx-jmd")
    parser.add_argument("--json")
    parser.add_argument("--svg")
    parser.add_argument("--title")
    args = parser.parse_args(ours)
    if not args.sources and not (args.model and args.images and args.labels):
        parser.error("needs MODEL --images --labels, or --from")
    return args, further


def run(command):
    """What the binary says in JSON; none if the ratio is out of reach."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode in (NOTHING_TO_DO, UNREACHABLE):
        return None
    if done.returncode:
        sys.exit(done.stderr.strip())
    return json.loads(done.stdout)


def measure(args, further):
    """Runs the binary once a cell, and once more where it is tuned."""
    ratios = (args.ratios or "1.25,1.5,2,3,4,6,8").split(",")
    report = {"model": pathlib.Path(args.model).stem, "images": None, "original": None, "rows": []}
    scored = ["--images", args.images, "--labels", args.labels, "--quiet", "--json", "-"]
    for calib in [*([] if args.no_plain else ["none"]), *args.calib]:
        kind = {"none": "plain", "drawn": "drawn"}.get(calib, "calibrated")
        shown = args.tune_images or calib
        for scheme in args.schemes.split(","):
            rows = [{"name": scheme, "kind": kind, "cells": []}]
            if args.tune and shown != "none":
                rows.append({"name": scheme, "kind": "tuned", "cells": []})
            for ratio in ratios:
                with tempfile.TemporaryDirectory() as folder:
                    small, tuned = (pathlib.Path(folder) / name for name in ("small.onnx", "tuned.onnx"))
                    result = run([args.binary, args.model, small, "--ratio", ratio, "--scheme", scheme, "--calib", calib, *scored,
                                  *further])
                    scores = [result and result["score"]]
                    if result and len(rows) > 1:
                        preprocess = [part for at, part in enumerate(further)
                                      if "--preprocess" in (part, further[max(at - 1, 0)])]
                        scores.append(run([args.binary, "tune", small, tuned, "--teacher", args.model, "--calib", shown, "--tune",
                                           args.tune, *scored, *preprocess])["score"])
                reached = result and result["totals"]["parameters"]["ratio"]
                for row, score in zip(rows, scores * len(rows)):
                    if score:
                        report |= {"images": score["images"], "original": score["top1_before"]}
                    row["cells"].append({"ratio": float(ratio), "reached": reached, "top1": score and score["top1_after"]})
            report["rows"] += rows
            write_json(args.json, report)
    if report["original"] is None:
        sys.exit("no scheme reaches any of these ratios")
    return report


def write_json(path, report):
    if path:
        pathlib.Path(path).write_text(json.dumps(report, indent=1) + "\n")


def joined(first, others):
    """One report of all cells; all must be of the same images, and the last of several cells counts."""
    rows = {}
    for name, other in [("", first), *others]:
        if other["images"] != first["images"] or abs(other["original"] - first["original"]) > 0.002:
            sys.exit(f"{name}: {other['images']} images, original {other['original']:.4f}; "
                     f"elsewhere {first['images']}, {first['original']:.4f}: not the same images and model")
        for row in other["rows"]:
            rows.setdefault((row["name"], row["kind"]), {}).update({cell["ratio"]: cell for cell in row["cells"]})
    return first | {"rows": [{"name": name, "kind": kind, "cells": [cells[ratio] for ratio in sorted(cells)]}
                             for (name, kind), cells in rows.items()]}


def table(report, ratios):
    print(f"| top-1 %, original {100 * report['original']:.1f} | " + " | ".join(f"{r:g}×" for r in ratios) + " |")
    print("|---|" + "---|" * len(ratios))
    for row in report["rows"]:
        shown = {cell["ratio"]: "-" if cell["top1"] is None else f"{100 * cell['top1']:.1f}" for cell in row["cells"]}
        print(f"| {row['name']}{SUFFIXES[row['kind']]} | " + " | ".join(shown.get(r, "") for r in ratios) + " |")


def spread(wanted, low, high, distance):
    """Positions in the order of `wanted`, at least `distance` apart between low and high, near what is wanted."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    distance = min(distance, (high - low) / max(len(wanted) - 1, 1))
    blocks = []
    for i in order:
        blocks.append([[i], min(max(wanted[i], low), high)])
        while len(blocks) > 1 and blocks[-2][1] + distance * len(blocks[-2][0]) > blocks[-1][1] + 1e-9:
            members = blocks[-2][0] + blocks[-1][0]
            start = sum(wanted[m] - distance * k for k, m in enumerate(members)) / len(members)
            blocks[-2:] = [[members, min(max(start, low), high - distance * (len(members) - 1))]]
    return {m: start + distance * k for members, start in blocks for k, m in enumerate(members)}


def svg(report, title):
    rows = [row | {"cells": [cell for cell in row["cells"] if cell["top1"] is not None]} for row in report["rows"]]
    rows = [row for row in rows if row["cells"]]
    cells = [cell for row in rows for cell in row["cells"]]
    values = [100 * v for v in [report["original"], *(cell["top1"] for cell in cells)]]
    step = next(s for s in (1, 2, 5, 10, 20) if max(values) - min(values) <= 6 * s or s == 20)
    top = min(step * math.ceil(max(values) / step), 100)
    bottom = min(step * math.floor(min(values) / step), top - step)
    ratios = [cell["reached"] for cell in cells]
    first, last = math.log(min(ratios)), math.log(max(ratios) * 1.0001)
    x = lambda ratio: LEFT + 12 + (RIGHT - LEFT - 24) * (math.log(ratio) - first) / (last - first)
    y = lambda share: BOTTOM - (BOTTOM - TOP) * (100 * share - bottom) / (top - bottom)
    style = STYLE
    for palette, colours in (("@LIGHT", LIGHT), ("@DARK", DARK)):
        style = style.replace(palette, " ".join(f".s{i} {{ stroke: {colour} }}" for i, colour in enumerate(colours)))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t">',
           f'<title id="t">{html.escape(title)}</title>', f"<style>{style}</style>",
           f'<text x="{LEFT}" y="24" font-size="15" font-weight="600">{html.escape(title)}</text>']
    for value in range(bottom, top + 1, step):
        out.append(f'<path class="axis" d="M{LEFT} {y(value / 100):.1f}H{RIGHT}"/>'
                   f'<text x="{LEFT - 8}" y="{y(value / 100) + 4:.1f}" text-anchor="end">{value}</text>')
    right = -math.inf
    for ratio in sorted({cell["ratio"] for cell in cells}):
        at = x(min(max(ratio, min(ratios)), max(ratios)))
        out.append(f'<path class="axis" d="M{at:.1f} {TOP}V{BOTTOM}"/>')
        if at - right >= 30:
            out.append(f'<text x="{at:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{ratio:g}×</text>')
            right = at
    out.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">times fewer parameters (log scale)</text>')
    out.append(f'<text x="{LEFT - 8}" y="{TOP - 12}">top-1 %</text>')
    names = [row["name"] for row in rows if row["kind"] != "baseline"]
    names = sorted(set(names), key=names.index)
    others = [row["name"] for row in rows if row["kind"] == "baseline"]
    ends = [(RIGHT, y(report["original"])), *((x(row["cells"][-1]["reached"]), y(row["cells"][-1]["top1"])) for row in rows)]
    places = spread([end[1] for end in ends], TOP - 10, HEIGHT - 14, LINE_HEIGHT)
    out.append(f'<path class="original" d="M{LEFT} {ends[0][1]:.1f}H{RIGHT}L{LABELS} {places[0]:.1f}h20" fill="none"/>'
               f'<text x="{LABELS + 27}" y="{places[0] + 4:.1f}">original, {100 * report["original"]:.1f} %</text>')
    for number, row in enumerate(rows, 1):
        baseline = row["kind"] == "baseline"
        index = (others if baseline else names).index(row["name"])
        colour = "other" if baseline else f"s{index % len(LIGHT)}"
        shape = ([CIRCLE] + SHAPES if baseline else SHAPES)[index % len(SHAPES)]
        points = [(x(cell["reached"]), y(cell["top1"])) for cell in row["cells"]]
        (end_x, end_y), at = points[-1], places[number]
        leader = f"M{end_x:.1f} {end_y:.1f}" + (f"H{RIGHT}" if end_x < RIGHT - 13 else "") + f"L{LABELS} {at:.1f}"
        name = row["name"] + SUFFIXES[row["kind"]].removesuffix(" weights").removesuffix(" pictures")
        name = html.escape(name if len(name) <= LONGEST else name[:LONGEST - 1] + "…")
        marks = "".join(f'<path class="mark" d="{shape}" transform="translate({a:.1f} {b:.1f})"/>'
                        for a, b in [*points, (LABELS + 10, at)])
        out.append(f'<g class="series {row["kind"]} {colour}"><path class="leader" d="{leader}"/>'
                   f'<path class="line" d="M{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'
                   f'<path class="line" d="M{LABELS} {at:.1f}h20"/>{marks}'
                   f'<text x="{LABELS + 27}" y="{at + 4:.1f}">{name}</text></g>')
    return "\n".join(out) + "\n</svg>\n"


def main():
    args, further = arguments()
    read = lambda paths: [(path, json.loads(pathlib.Path(path).read_text())) for path in paths]
    sources = read(args.sources)
    report = joined(sources[0][1], sources[1:]) if sources else measure(args, further)
    report = joined(report, read(args.baseline))
    write_json(args.json, report)
    ratios = args.ratios.split(",") if args.ratios else sorted({cell["ratio"] for row in report["rows"] for cell in row["cells"]})
    table(report, [float(r) for r in ratios])
    if args.svg:
        title = args.title or f"Top-1 without training: {report['model']}, {report['images']:,} images"
        pathlib.Path(args.svg).write_text(svg(report, title))


if __name__ == "__main__":
    main()
