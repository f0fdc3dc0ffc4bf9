# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""A table of what became of many models, as CSV and as Markdown, from the records of `onnx-jmd zoo`.

    uv run tools/zoo/summary.py OUT_DIR [--csv FILE] [--markdown FILE]

Without --csv and --markdown the Markdown goes to standard output. The Snakefile beside this file uses it, too.
"""
import argparse, csv, io, json, pathlib

COLUMNS = ["model", "outcome", "ratio", "parameters", "parameters after", "file bytes", "file bytes after", "SNR dB",
           "agreement", "seconds", "exit code", "reason"]


def rows(out_dir, models=None):
    """A row a model: those named (paths without .onnx), or all that have a record."""
    records = pathlib.Path(out_dir) / "zoo" / "records"
    if models is None:
        paths = sorted(p for p in records.rglob("*.json"))
    else:
        paths = [records / f"{model}.onnx.json" for model in models]
    return [row(path, path.relative_to(records).as_posix().removesuffix(".json")) for path in paths]


def row(path, name):
    if not path.is_file():
        return dict.fromkeys(COLUMNS, "") | {"model": name, "outcome": "not done"}
    facts = json.loads(path.read_text())
    parameters, size = facts["parameters"] or {}, facts["file_bytes"] or {}
    approximation = (facts["verification"] or {}).get("approximation", {})
    agreement = (facts["score"] or approximation).get("agreement")
    values = [facts["model"], facts["outcome"], facts["ratio"], parameters.get("before"), parameters.get("after"),
              size.get("before"), size.get("after"), approximation.get("snr_db"), agreement, facts["seconds"],
              facts["exit_code"], facts["reason"]]
    return {column: "" if value is None else value for column, value in zip(COLUMNS, values, strict=True)}


def text(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else value.replace("|", "\\|")


def as_csv(table):
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


def as_markdown(table):
    rules = ["---" if column in ("model", "outcome", "reason") else "---:" for column in COLUMNS]
    lines = [COLUMNS, rules, *([text(value) for value in row.values()] for row in table)]
    outcomes = [row["outcome"] for row in table]
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{len(table)} models: {counts}\n"


def write(out_dir, models, csv_path, markdown_path):
    table = rows(out_dir, models)
    for path, content in (csv_path, as_csv(table)), (markdown_path, as_markdown(table)):
        if path:
            replaced = pathlib.Path(f"{path}.tmp")
            replaced.write_text(content)
            replaced.replace(path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out_dir", type=pathlib.Path, metavar="OUT_DIR")
    parser.add_argument("--csv", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    args = parser.parse_args()
    if args.csv or args.markdown:
        write(args.out_dir, None, args.csv, args.markdown)
    else:
        print(as_markdown(rows(args.out_dir)), end="")


if __name__ == "__main__":
    main()
