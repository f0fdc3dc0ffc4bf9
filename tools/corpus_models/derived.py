"""Models of the corpus passed through what people pass models through, and those of exporters beside torch's."""
import logging, pathlib, tempfile, warnings
import numpy as np, onnx, onnxruntime, onnxscript, onnxsim, onnxslim, skl2onnx
from onnx import TensorProto, helper, numpy_helper
from onnxconverter_common import float16
from onnxruntime import quantization
from onnxscript import FLOAT, opset17 as op
from . import hand

VERSION = {m.__name__: m.__version__ for m in (onnxruntime, onnxsim, onnxslim, skl2onnx, onnxscript)}


class Noise(quantization.CalibrationDataReader):
    """Four seeded inputs."""

    def __init__(self, model):
        rng = np.random.default_rng(0)
        value = model.graph.input[0]
        shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        self.left = [{value.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]

    def get_next(self):
        return self.left.pop() if self.left else None


def halved(source, target, whole_io=False):
    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=whole_io), target)


def dynamic(source, target):
    quantization.quantize_dynamic(source, target)


def static(source, target, per_channel=False, form=quantization.QuantFormat.QDQ):
    with tempfile.TemporaryDirectory() as folder:
        ready = pathlib.Path(folder) / "ready.onnx"
        quantization.quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantization.quantize_static(ready, target, Noise(onnx.load(source)), quant_format=form, per_channel=per_channel)


def simplified(source, target):
    onnx.save(onnxsim.simplify(onnx.load(source))[0], target)


def slimmed(source, target):
    onnx.save(onnxslim.slim(onnx.load(source)), target)


def optimised(source, target, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def external(source, target):
    # onnx appends to a file of that name in the target's folder, and refuses one in the working folder.
    target.with_name(f"{target.name}.data").unlink(missing_ok=True)
    onnx.save(onnx.load(source), target, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{target.name}.data", size_threshold=1024)


def external_each(source, target):
    """A file a tensor, as onnx writes them by default."""
    folder = target.parent / target.stem
    folder.mkdir(exist_ok=True)
    model = onnx.load(source)
    for number, tensor in enumerate(t for t in model.graph.initializer if len(t.raw_data) > 1024):
        place = folder / f"{number}.bin"
        place.write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{folder.name}/{place.name}")
    target.write_bytes(model.SerializeToString())


def converted(source, target, opset):
    onnx.save(onnx.version_converter.convert_version(onnx.load(source), opset), target)


ORT = f"ONNX Runtime {onnxruntime.__version__}"
PASSES = {
    "float16": ("onnxconverter-common 1.16.0, float16", halved),
    "float16-io": ("onnxconverter-common 1.16.0, float16 but for inputs and outputs", lambda s, t: halved(s, t, True)),
    "dynamic": (f"{ORT} dynamic quantizer", dynamic),
    "qdq": (f"{ORT} static quantizer, QDQ", static),
    "qdq-channel": (f"{ORT} static quantizer, QDQ, a scale a channel", lambda s, t: static(s, t, True)),
    "qlinear": (f"{ORT} static quantizer, QOperator", lambda s, t: static(s, t, form=quantization.QuantFormat.QOperator)),
    "onnxsim": (f"onnxsim {VERSION['onnxsim']}", simplified),
    "onnxslim": (f"onnxslim {VERSION['onnxslim']}", slimmed),
    "ort-basic": (f"{ORT} optimised, basic", lambda s, t: optimised(s, t, "ORT_ENABLE_BASIC")),
    "ort-extended": (f"{ORT} optimised, extended (com.microsoft)", lambda s, t: optimised(s, t, "ORT_ENABLE_EXTENDED")),
    "ort-all": (f"{ORT} optimised, all (NCHWc)", lambda s, t: optimised(s, t, "ORT_ENABLE_ALL")),
    "external": ("onnx, external data in one file", external),
    "external-each": ("onnx, external data, a file a tensor", external_each),
    "to-opset-21": ("onnx version converter to 21", lambda s, t: converted(s, t, 21)),
}
# Which models go through which.
PLAN = {
    "resnet34": ["float16", "dynamic", "qdq", "qdq-channel", "qlinear", "onnxsim", "onnxslim", "ort-basic", "ort-extended", "ort-all", "external", "external-each", "to-opset-21"],
    "unet-dynamo": ["float16-io", "onnxsim", "onnxslim"],
    "yolo": ["qdq", "onnxslim"],
    "vit": ["onnxsim", "ort-extended", "dynamic"],
    "crnn": ["dynamic"],
    "mobilenetv3": ["ort-extended", "float16"],
    "convnext-dynamo": ["onnxslim"],
    "unfolded": ["onnxsim", "ort-basic"],
}


@onnxscript.script(default_opset=op)
def scripted(x: FLOAT[1, 3, 32, 32], w1, w2, w3, b):
    y = op.Relu(op.Conv(x, w1, pads=[1, 1, 1, 1]))
    y = y + op.Conv(op.Relu(op.Conv(y, w2, pads=[1, 1, 1, 1])), w3, b, pads=[1, 1, 1, 1])
    return op.GlobalAveragePool(y)


def by_onnxscript(corpus):
    model = scripted.to_model_proto()
    g = hand.Graph(40)
    shapes = ([32, 3, 3, 3], [32, 32, 3, 3], [32, 32, 3, 3])
    for value, shape in zip([v.name for v in model.graph.input][1:], (*shapes, None)):
        if shape:
            g.weight(shape, value)
        else:
            g.vector(g.rng.normal(0, 0.05, 32), value)
    del model.graph.input[1:]
    model.graph.initializer.extend(g.stored)
    for value in model.graph.output:
        value.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 32, 1, 1]))
    corpus.save(model, "onnxscript", "Residual block as a script", f"onnxscript {onnxscript.__version__}")


def by_sklearn(corpus):
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler
    from sklearn.pipeline import make_pipeline
    x, y = load_digits(return_X_y=True)
    kinds = {"mlp": ("MLP on digits", MLPClassifier((64, 64), max_iter=30, random_state=0)),
             "forest": ("Random forest: nothing to compress", RandomForestClassifier(5, max_depth=6, random_state=0)),
             "logistic": ("Scaler and logistic regression", make_pipeline(StandardScaler(), LogisticRegression(max_iter=50)))}
    for name, (what, model) in kinds.items():
        if corpus.wants(f"sklearn-{name}"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(x, y)
            made = skl2onnx.to_onnx(model, x[:1].astype(np.float32), options={"zipmap": False}, target_opset=17)
            corpus.save(made, f"sklearn-{name}", what, f"skl2onnx {skl2onnx.__version__}", shapes={"X": [4, 64]})


def make(corpus):
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    by_onnxscript(corpus)
    by_sklearn(corpus)
    known = {e["file"]: e for e in corpus.entries}
    for name, passes in PLAN.items():
        source = corpus.path(name)
        if not source.exists():
            continue
        for step in passes:
            done, through = PASSES[step]
            if not corpus.wants(f"{name}-{step}"):
                continue
            through(source, corpus.path(f"{name}-{step}"))
            entry = known.get(f"{name}.onnx", {})
            corpus.add(f"{name}-{step}", entry.get("architecture", name), f"{entry.get('exporter', '?')}, {done}",
                       entry.get("shapes"), entry.get("ints"))
