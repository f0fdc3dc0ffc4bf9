# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2", "tensorflow-cpu==2.21.0", "tf2onnx==1.17.0", "keras==3.15.1"]
# ///
"""Keras models through tf2onnx, and TFLite ones: images with channels last, wrapped in Transposes.

    uv run tools/corpus_models/keras_models.py CORPUS_DIR

Called by make_corpus.py in an environment of its own, since TensorFlow wants other versions. Appends to keras.json in the folder.
"""
import json, os, pathlib, sys
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
import keras, numpy as np, onnx, tensorflow as tf, tf2onnx
from keras import layers
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

SIDE = 64


def fill(model, seed):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if "moving_variance" in weight.path or "gamma" in weight.path:
            values = rng.uniform(0.7, 1.3, shape)
        elif len(shape) < 2:
            values = rng.normal(0, 0.05, shape)
        else:
            rows, out = int(np.prod(shape[:-1])), shape[-1]
            rank = max(1, min(rows, out) // 4)
            low = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, out)) / np.sqrt(rank)
            fan = rows if "depthwise" not in weight.path else int(np.prod(shape[:2]))
            values = ((low + 0.3 * rng.standard_normal((rows, out))) * np.sqrt(1.6 / fan)).reshape(shape)
        weight.assign(values.astype(np.float32))
    return model


def conv(x, out, size=3, stride=1):
    x = layers.Conv2D(out, size, stride, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def residual():
    x = first = keras.Input((SIDE, SIDE, 3))
    x = conv(x, 32, 3, 2)
    for _ in range(3):
        x = layers.Add()([x, conv(conv(x, 32), 32)])
    return keras.Model(first, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def unet():
    x = first = keras.Input((SIDE, SIDE, 3))
    kept = []
    for width in (16, 32):
        x = conv(conv(x, width), width)
        kept.append(x)
        x = layers.MaxPooling2D()(x)
    x = conv(x, 64)
    for width in (32, 16):
        x = layers.Conv2DTranspose(width, 2, 2, padding="same")(x)
        x = conv(layers.Concatenate()([x, kept.pop()]), width)
    return keras.Model(first, layers.Conv2D(2, 1)(x))


def sequence():
    x = first = keras.Input((100, 20))
    for width in (32, 64, 64):
        x = layers.Conv1D(width, 5, padding="same", activation="relu")(x)
    return keras.Model(first, layers.Dense(12)(layers.GRU(32)(x)))


def dense():
    x = first = keras.Input((SIDE,))
    for width in (256, 256, 10):
        x = layers.Dense(width, activation="relu")(x)
    return keras.Model(first, x)


def mobile():
    return keras.applications.MobileNetV2((SIDE, SIDE, 3), alpha=0.35, weights=None, classes=10)


def solid():
    x = first = keras.Input((8, 16, 16, 2))
    for width in (16, 24, 24):
        x = layers.Conv3D(width, 3, padding="same", activation="relu")(x)
    return keras.Model(first, layers.Dense(4)(layers.GlobalAveragePooling3D()(x)))


MODELS = {"residual": ("Residual network, channels last", residual), "unet": ("U-Net, channels last", unet),
          "conv1d": ("Conv1D and GRU", sequence), "dense": ("Dense layers alone", dense), "mobilenetv2": ("MobileNetV2 0.35, channels last", mobile),
          "conv3d": ("Conv3D, channels last", solid)}
LITE = ("residual", "mobilenetv2", "dense")


def main():
    folder, entries = pathlib.Path(sys.argv[1]), []
    for number, (name, (what, build)) in enumerate(MODELS.items()):
        model = fill(build(), number)
        spec = (tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="x"),)
        shape = {"x": [1, *model.input_shape[1:]]}
        call = tf.function(lambda x, model=model: model(x, training=False), input_signature=spec)
        made, _ = tf2onnx.convert.from_function(call, spec, opset=15)
        onnx.save(made, folder / f"keras-{name}.onnx")
        by = f"Keras {keras.__version__}, tf2onnx {tf2onnx.__version__}"
        entries.append({"file": f"keras-{name}.onnx", "architecture": what, "exporter": by, "shapes": shape})
        if name not in LITE:
            continue
        for kind in ("float", "int8 weights"):
            fixed = tf.function(lambda x, model=model: model(x, training=False))
            frozen = convert_variables_to_constants_v2(fixed.get_concrete_function(tf.TensorSpec(tuple(shape["x"]), tf.float32, name="x")))
            converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], None)
            if kind != "float":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            path = folder / f"tflite-{name}-{kind[:4]}.tflite"
            path.write_bytes(converter.convert())
            target = path.with_suffix(".onnx")
            try:
                tf2onnx.convert.from_tflite(str(path), opset=15, output_path=str(target))
                file = onnx.load(target)
                stated = {i.name: [d.dim_value or 1 for d in i.type.tensor_type.shape.dim] for i in file.graph.input}
                entries.append({"file": target.name, "architecture": f"{what}, {kind}", "exporter": f"TFLite of TensorFlow {tf.__version__}, tf2onnx {tf2onnx.__version__}", "shapes": stated})
            except Exception as error:
                print(f"{target.name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            path.unlink()
    (folder / "keras.json").write_text(json.dumps(entries, indent=1) + "\n")


main()
