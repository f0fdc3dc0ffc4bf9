# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1"]
# ///
"""Runs onnx-jmd on every model of a corpus and judges each result with onnx.checker and ONNX Runtime, which share no code with it.

    uv run tools/make_corpus.py CORPUS_DIR
    uv run tools/corpus.py CORPUS_DIR [--binary target/release/onnx-jmd] [--ratio 2] [--out tools/corpus.md]

    verified    written; onnx.checker accepts it, inputs, outputs and all other nodes are the original's, and the original with the
                kernels that the replacements stand for computes the same (corpus_judge.py)
    left alone  exit code 4: nothing to compress, the output is the input byte for byte, each layer with its reason
    refused     another documented exit code, one sentence, no output
    WRONG       anything else
Weights alone decide (--calib none), and for some models drawn pictures as well. Where the ratio is out of reach, a reachable one is
tried. Where tract cannot run a model, the file that --no-verify writes is judged. Exits 1 if anything is WRONG.
"""
import argparse, collections, json, pathlib, re, subprocess, sys, tempfile, time
import onnx
from corpus_judge import NoReference, judge
from cross_check import FLOATS, Failed, check, parameters

REFUSALS = {2, 3, 5, 7}
# Every so many models are compressed a second time, calibrated on drawn pictures, if they have not more parameters than this.
CALIBRATED_EACH, CALIBRATED_MOST = 12, 1_500_000
TYPES = {onnx.TensorProto.FLOAT: "f32", onnx.TensorProto.FLOAT16: "f16", onnx.TensorProto.BFLOAT16: "bf16", onnx.TensorProto.DOUBLE: "f64",
         onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "uint8"}
REACHABLE = re.compile(r"the largest [^:]*is ([\d.]+)")


def run(binary, source, target, report, options, limit=300):
    command = [binary, source, target, "--quiet", "--json", report, *options]
    started = time.monotonic()
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failed(f"took more than {limit} s") from None
    return done.returncode, done.stderr, time.monotonic() - started


def one_sentence(text):
    lines = text.strip().splitlines()
    check(len(lines) == 1, f"{len(lines)} lines on stderr: {' / '.join(lines)[:300]}")
    check(lines[0].startswith("onnx-jmd: "), f"no 'onnx-jmd: ' before: {lines[0][:200]}")
    return lines[0].removeprefix("onnx-jmd: ")


def reasons(rows):
    """Reasons without the names in them, most frequent first."""
    plain = collections.Counter(re.sub(r" \(group = \d+\)", "", re.sub(r"'[^']*'", "…", row["reason"])) for row in rows)
    return "; ".join(f"{count}× {reason}" if count > 1 else reason for reason, count in plain.most_common())


def attempt(binary, path, known, options, calibrated):
    """One run of the binary and what came of it, as a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        target, report = pathlib.Path(folder) / "small.onnx", pathlib.Path(folder) / "report.json"
        ratio, asked = float(options[1]), []
        for _ in range(3):
            code, said, seconds = run(binary, path, target, report, [*options, *asked])
            if code == 5 and (found := REACHABLE.search(said)) and float(found[1]) > 1.02:
                one_sentence(said)
                ratio = round(1 + 0.8 * (float(found[1]) - 1), 3)
                options = ["--ratio", str(ratio), *options[2:]]
            elif code == 7 and not asked:
                check(not target.exists(), "refused, but there is an output")
                refusal, asked = one_sentence(said), ["--no-verify"]
            else:
                break
        row = {"seconds": seconds, "asked": ratio, "tract": "", "difference": "", "check": "", "reason": ""}
        if asked:
            row["tract"] = refusal
        if code == 0:
            check(target.exists(), "exit code 0 without an output")
            facts = json.loads(report.read_text())
            change = facts["totals"]["parameters"]
            exact = max((g["reconstruction_error"] for g in facts["groups"]), default=1) < 1e-5
            close = ratio <= change["before"] / change["after"] <= (99 if exact else 1.05) * ratio
            check(close, f"ratio {change['ratio']:.3f}, not {ratio}")
            row |= {"outcome": "verified", "ratio": f"{change['ratio']:.2f}"}
            if facts["verification"]:
                row["tract"] = f"{facts['verification']['rewrite_error']:.0e}"
            row["left"] = reasons([r for r in facts["left_alone"] if not r["reason"].startswith("whole at this ratio")])
            try:
                row["check"], worst = judge(path, target, facts, known, calibrated)
                row["difference"] = f"{worst:.0e}"
            except NoReference as why:
                row["check"] = f"none: {why}"
        elif code == 4:
            check(target.exists(), "exit code 4 without an output")
            model = onnx.load(path, load_external_data=False)
            external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
            check(external or target.read_bytes() == path.read_bytes(), "left alone, but the bytes differ")
            facts = json.loads(report.read_text())
            named = collections.Counter(r["name"] for r in facts["left_alone"])
            convs = [n for n in model.graph.node if n.op_type == "Conv"]
            check(sum(named.values()) >= len(convs), f"{len(convs)} convolutions, {sum(named.values())} reasons")
            check(not said.strip() or len(said.strip().splitlines()) == 1, f"stderr: {said[:300]}")
            row |= {"outcome": "left alone", "reason": reasons(facts["left_alone"]) or "no layer with a kernel"}
        else:
            check(code in REFUSALS, f"exit code {code}: {' / '.join(said.strip().splitlines())[-300:]}")
            check(not target.exists(), "refused, but there is an output")
            # Without the folder, which is another on every machine.
            row |= {"outcome": "refused", "reason": f"exit code {code}: {one_sentence(said)}".replace(f"{path.parent}/", "")}
        if row["outcome"] == "verified" and asked:
            row |= {"outcome": "refused", "reason": f"exit code 7: {row['tract']} ({'' if row['check'].startswith('none') else 'checked: '}written with --no-verify)", "tract": "cannot run it"}
        return row


def describe(path, entry):
    model = onnx.load(path)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), "?")
    found = collections.Counter()
    for tensor in model.graph.initializer:
        count = 1
        for d in tensor.dims:
            count *= d
        found[tensor.data_type] += count
    floats = parameters(model)
    kind = TYPES.get(max(found, key=found.get)) if found else "–"
    return {"model": path.stem, **entry, "opset": opset, "ir": model.ir_version, "type": kind or "other", "parameters": floats}


COLUMNS = ["model", "what", "exporter", "opset", "IR", "type", "parameters", "outcome", "ratio", "tract", "ONNX Runtime", "why, or what was left"]


def line(row):
    why = row["reason"] or row.get("left", "")
    if row["check"].startswith("none"):
        why = f"{row['check'][6:]}; {why}"
    return [row["model"], row["architecture"], row["exporter"], str(row["opset"]), str(row["ir"]), row["type"], f"{row['parameters']:,}".replace(",", " "),
            row["outcome"], row.get("ratio", ""), row["tract"], row["difference"], why.replace("|", "\\|").replace("\n", " ")]


def table(rows, arguments, seconds):
    counts = collections.Counter(r["outcome"] for r in rows)
    order = ["verified", "left alone", "refused", "WRONG"]
    head = f"""# Models of other makers

Written by `tools/corpus.py`; {len(rows)} runs on {len({r['model'].split(',')[0] for r in rows})} models of `tools/make_corpus.py` at ratio {arguments.ratio:g}:
**{", ".join(f"{counts[o]} {o}" for o in order)}**. {seconds:.0f} s.

`tract`: rewrite error by the tool's own verification, of the largest output. `ONNX Runtime`: the same by `tools/corpus_judge.py`, which cuts
every replacement out of the file, runs it on unit impulses and sets what it answers as the original's kernel. A ratio in a row that is less than
the one asked for is 0.8 of what can be reached. `parameters`: those in floating point. Behind a refusal by tract stands what the file that --no-verify writes was found to be.
"""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(line(r)) + " |" for r in rows]
    return head + "\n" + "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path, metavar="CORPUS_DIR")
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path("target/release/onnx-jmd"))
    parser.add_argument("--ratio", type=float, default=2.0)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--only", default="", help="models whose name holds this")
    args = parser.parse_args()
    entries = json.loads((args.folder / "corpus.json").read_text())
    started, rows = time.monotonic(), []
    for number, entry in enumerate(e for e in entries if args.only in e["file"]):
        path = args.folder / entry["file"]
        shapes = [o for name, dims in (entry.get("shapes") or {}).items() for o in ("--input-shape", f"{name}:{','.join(map(str, dims))}")]
        ways = [(["--calib", "none"], False)]
        if number % CALIBRATED_EACH == CALIBRATED_EACH - 1 and describe(path, entry)["parameters"] <= CALIBRATED_MOST:
            ways.append((["--calib-samples", "128", "--no-mirror"], True))
        for options, calibrated in ways:
            row = describe(path, entry)
            if calibrated:
                row["model"] += ", calibrated"
            try:
                row |= attempt(args.binary, path, entry, ["--ratio", str(args.ratio), *shapes, *options], calibrated)
            except Failed as reason:
                row |= {"outcome": "WRONG", "reason": str(reason), "tract": "", "difference": "", "check": "", "seconds": 0.0}
            except Exception as error:  # whatever onnx or ONNX Runtime makes of the file is a finding
                row |= {"outcome": "WRONG", "reason": f"{type(error).__name__}: {error}"[:300], "tract": "", "difference": "", "check": "", "seconds": 0.0}
            rows.append(row)
            print(f"{row['outcome']:10} {row['model']:28} {row.get('ratio', ''):5} {row['difference']:6} {row['seconds']:5.1f} s  {row['reason'] or row['check']}", flush=True)
    written = table(rows, args, time.monotonic() - started)
    if args.out:
        args.out.write_text(written)
    counts = collections.Counter(r["outcome"] for r in rows)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    sys.exit(1 if counts["WRONG"] else 0)


if __name__ == "__main__":
    main()
