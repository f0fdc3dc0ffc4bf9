# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2"]
# ///
"""Writes residual networks with random weights as ONNX files, for benchmarks and checks of structure.

    uv run tools/make_models.py OUT_DIR [--depth 34] [--cifar] [--batch-norm]

Topology, shapes and names are those of torchvision's ResNet-18, 34, 50 and 101. The weights are drawn from
a seed, so accuracy and spectra of these files mean nothing.
"""
import argparse, pathlib
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper

# depth: (blocks a stage, whether they are bottlenecks)
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}
# Gain of the last convolution of a block: keeps the sum over the blocks of one magnitude.
LAST_GAIN = 0.25


class Builder:
    """Nodes and initializers in the making; each method adds nodes and returns the name of their output."""

    def __init__(self, fold, seed):
        self.fold = fold
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers = [], []

    def node(self, op, inputs, name, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def tensor(self, name, values):
        self.initializers.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def conv(self, x, name, norm, inputs, outputs, size, stride=1, gain=1.0):
        """A convolution with a bias, or without one and a BatchNormalization named `norm` behind it."""
        std = gain * np.sqrt(2 / (inputs * size * size))
        weight = self.rng.standard_normal((outputs, inputs, size, size), np.float32) * np.float32(std)
        read = [x, self.tensor(f"{name}.weight", weight)]
        if self.fold:
            read.append(self.tensor(f"{name}.bias", self.rng.normal(0, 0.05, outputs)))
        shape = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4, "dilations": [1, 1]}
        x = self.node("Conv", read, name, **shape, group=1)
        if self.fold:
            return x
        statistics = {"weight": self.rng.uniform(0.7, 1.3, outputs), "bias": self.rng.normal(0, 0.05, outputs),
                      "running_mean": self.rng.normal(0, 0.1, outputs), "running_var": self.rng.uniform(0.6, 1.4, outputs)}
        read = [x, *(self.tensor(f"{norm}.{key}", values) for key, values in statistics.items())]
        return self.node("BatchNormalization", read, norm, epsilon=1e-5)

    def block(self, x, name, inputs, width, stride, bottleneck):
        """A residual block and the number of its output channels."""
        outputs = 4 * width if bottleneck else width
        # size, channels, stride: the stride stands on the (first) 3x3, as in torchvision.
        convs = [(1, width, 1), (3, width, stride), (1, outputs, 1)] if bottleneck else [(3, width, stride), (3, width, 1)]
        y, channels = x, inputs
        for number, (size, out, step) in enumerate(convs, 1):
            last = number == len(convs)
            gain = LAST_GAIN if last else 1.0
            y = self.conv(y, f"{name}.conv{number}", f"{name}.bn{number}", channels, out, size, step, gain)
            y = y if last else self.node("Relu", [y], f"{name}.relu{number}")
            channels = out
        if stride != 1 or inputs != outputs:
            gain = np.sqrt(0.5)
            x = self.conv(x, f"{name}.downsample.0", f"{name}.downsample.1", inputs, outputs, 1, stride, gain)
        return self.node("Relu", [self.node("Add", [y, x], f"{name}.add")], f"{name}.relu"), outputs


def resnet(depth: int, *, classes=1000, cifar=False, fold=True, seed=0) -> onnx.ModelProto:
    """A residual network with He-normal weights.

    `cifar` has a 3x3 stem at stride 1, no max pooling and 32x32 images; `fold` gives the convolutions biases in place
    of BatchNormalization nodes.
    """
    blocks, bottleneck = DEPTHS[depth]
    build = Builder(fold, seed)
    if cifar:
        x = build.node("Relu", [build.conv("image", "conv1", "bn1", 3, 64, 3)], "relu")
    else:
        x = build.node("Relu", [build.conv("image", "conv1", "bn1", 3, 64, 7, 2)], "relu")
        x = build.node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, count in enumerate(blocks):
        for number in range(count):
            stride = 2 if stage and not number else 1
            x, channels = build.block(x, f"layer{stage + 1}.{number}", channels, 64 << stage, stride, bottleneck)
    x = build.node("Flatten", [build.node("GlobalAveragePool", [x], "avgpool")], "flatten")
    weight = build.tensor("fc.weight", build.rng.normal(0, np.sqrt(1 / channels), (classes, channels)))
    bias = build.tensor("fc.bias", np.zeros(classes))
    build.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["scores"], "fc", transB=1))
    size = 32 if cifar else 224
    graph = helper.make_graph(
        build.nodes, f"resnet{depth}",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", classes])], build.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="make_models")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path, metavar="OUT_DIR")
    parser.add_argument("--depth", type=int, default=34, choices=sorted(DEPTHS))
    parser.add_argument("--cifar", action="store_true", help="32x32 images, 10 classes")
    parser.add_argument("--batch-norm", action="store_true", help="keep BatchNormalization nodes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    classes = 10 if args.cifar else 1000
    model = resnet(args.depth, classes=classes, cifar=args.cifar, fold=not args.batch_norm, seed=args.seed)
    parts = [f"resnet{args.depth}", "cifar" if args.cifar else "", "bn" if args.batch_norm else ""]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / ("-".join(filter(None, parts)) + ".onnx")
    onnx.save(model, path)
    print(path, sum(int(np.prod(t.dims)) for t in model.graph.initializer), "parameters")


if __name__ == "__main__":
    main()
