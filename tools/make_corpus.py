# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1", "torch==2.15.0", "torchvision==0.29.2", "timm==1.0.31", "onnxscript==0.7.2",
#   "onnxsim==0.8.1", "onnxslim==0.1.98", "onnxconverter-common==1.16.0", "skl2onnx==1.20.0", "scikit-learn==1.9.1",
# ]
# ///
"""Makes a corpus of ONNX models as other makers write them, for tools/corpus.py: small, seeded, nothing downloaded.

    uv run tools/make_corpus.py OUT_DIR [--only NAME] [--keras-python PYTHON] [--also MODEL.onnx ...]

    corpus_models/torch_models.py  networks of torchvision, timm and nets.py by both exporters of torch, several opsets and types
    corpus_models/hand.py          what the format allows and exporters seldom write, node by node
    corpus_models/derived.py       some of these quantised, halved, simplified, optimised; onnxscript; skl2onnx
    corpus_models/keras_models.py  Keras and TFLite by tf2onnx, in an environment of its own: `uv run`, or PYTHON where it is installed

Weights are of low rank plus noise. OUT_DIR/corpus.json says what each file is. Not here, as their exporters do not install beside these
pins or are no more: PaddlePaddle, MXNet, Caffe2, CNTK, Chainer, MATLAB, ML.NET, Core ML.
"""
import argparse, json, pathlib, shutil, subprocess, sys, time
from corpus_models.entry import Corpus

HERE = pathlib.Path(__file__).parent


def by_keras(corpus, python):
    if not corpus.wants("keras") and not corpus.wants("tflite"):
        return
    script = HERE / "corpus_models" / "keras_models.py"
    command = [python] if python else ["uv", "run"]
    if not python and not shutil.which("uv"):
        print("no Keras models: neither uv nor --keras-python", file=sys.stderr)
        return
    subprocess.run([*command, script, corpus.folder], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    corpus.entries += json.loads((corpus.folder / "keras.json").read_text())


def also(corpus, paths):
    for path in paths:
        shutil.copy(path, corpus.path(f"also-{path.stem}"))
        corpus.add(f"also-{path.stem}", "given", "given")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path, metavar="OUT_DIR")
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--keras-python", help="an interpreter with the packages of keras_models.py")
    parser.add_argument("--also", type=pathlib.Path, nargs="*", default=[], metavar="MODEL.onnx")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    corpus, started = Corpus(args.folder, args.only), time.monotonic()
    from corpus_models import derived, hand, torch_models
    torch_models.make(corpus)
    hand.make(corpus)
    derived.make(corpus)
    by_keras(corpus, args.keras_python)
    also(corpus, args.also)
    index = args.folder / "corpus.json"
    known = {e["file"]: e for e in (json.loads(index.read_text()) if args.only and index.exists() else [])}
    known |= {e["file"]: e for e in corpus.entries}
    index.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    print(f"{len(corpus.entries)} models in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
