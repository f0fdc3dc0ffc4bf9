# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1"]
# ///
"""A published method without training, to compare with: whitened SVD with Lagrangian choice of ranks (BALF).

    uv run tools/baseline_lagrangian.py MODEL.onnx --calib X.npy --images X.npy --labels Y.npy [--ratios 1.5,2,3,4] \\
        [--samples 500] [--mean 0.485,0.456,0.406] [--std 0.229,0.224,0.225] [--json FILE] [--save-dir DIR]

Prints a Markdown row of top-1 percentages by ONNX Runtime; `-` is a ratio out of reach. --json writes what
tools/accuracy_table.py reads with --baseline, --save-dir the compressed models. Images are .npy [count, channels,
height, width]; bytes are divided by 255, and (x - mean) / std follows.

This is our reading of the method that arXiv 2509.25136, "BALF: Budgeted Activation-Aware Low-Rank Factorization for
Fine-Tuning-Free Model Compression", describes, written without its authors' code:

    layers     each Conv (two axes, group 1) and each Gemm or MatMul by a constant matrix, if nothing else reads that
               constant; float32. All others stay as they are (the paper also factors grouped convolutions).
    unfolding  W is (in*kh*kw) x out; rank r gives a kh x kw convolution to r channels, which keeps strides, pads and
               dilations, and a 1x1 convolution from r channels, which keeps the bias; a linear layer gives two.
    whitening  H = E[x x^T], not centred, of the im2col rows x (zero padding included) that the original network
               feeds the layer on the calibration images; H = Q diag(e) Q^T, S = diag(sqrt e) Q^T and S^+ on those
               directions alone where sqrt e > 1e-10. M = S W = P D R^T, U = S^+ P_r, V = D_r R_r^T, in float64.
    ranks      those that maximise sum_l energy_l(r_l) - lambda * sum_l cost_l(r_l), energy_l the share of the sum of
               D^2 that the first r values hold and cost_l(r) = min(r * (in*kh*kw + out), in*kh*kw*out); a layer that
               costs as much as the original stays whole, with energy 1. lambda is the smallest, by bisection, that
               meets the budget: float parameters of the file / ratio, less those that belong to no such layer.
    not done   no refit, no change of biases, and what the Lagrangian leaves of the budget stays unspent.

One run of the original gives all moments, batch by batch; a layer with more than --rows positions contributes that
many of them an image, drawn anew for each batch from a seed. In memory are one batch of activations and one moment
matrix a layer. A ratio counts the elements of all float initializers and Constant nodes, before and after.
"""
import argparse, json, math, pathlib
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

NAME = "BALF (our reading)"
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
# Directions of the input with a smaller root mean square count as absent.
RANK_TOLERANCE = 1e-10


def load(path):
    """The model with the float tensors of its Constant nodes moved to the initializers."""
    model = onnx.load(path)
    graph = model.graph
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type in FLOATS:
                tensor = graph.initializer.add()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                graph.node.remove(node)
    model.ir_version = max(model.ir_version, 4)
    return model


def parameters(model):
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in FLOATS)


class Layer:
    """A convolution or linear layer, W as (in*kh*kw) x out and the second moment of the rows it is multiplied by."""

    def __init__(self, node, tensor):
        self.node, self.tensor = node, numpy_helper.to_array(tensor)
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.transposed = node.op_type == "Conv" or self.attributes.get("transB", 0)
        matrix = self.tensor.reshape(len(self.tensor), -1) if node.op_type == "Conv" else self.tensor
        self.matrix = (matrix.T if self.transposed else matrix).astype(np.float64)
        self.moment, self.count = np.zeros([len(self.matrix)] * 2), 0

    def rows(self, x, limit, rng):
        """The im2col rows of a batch, at most `limit` an image, positions drawn at random."""
        if self.node.op_type != "Conv":
            x = x.reshape(len(x), -1, x.shape[-1])
            chosen = positions(x.shape[1], limit, rng)
            return x[:, chosen].reshape(-1, x.shape[-1])
        kernel = self.tensor.shape[2:]
        strides, dilations = (self.attributes.get(key, [1, 1]) for key in ("strides", "dilations"))
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations)]
        x = np.pad(x, [(0, 0), (0, 0), *self.padding(x.shape[2:], spans, strides)])
        windows = np.lib.stride_tricks.sliding_window_view(x, spans, (2, 3))
        windows = windows[:, :, ::strides[0], ::strides[1], ::dilations[0], ::dilations[1]]
        height, width = windows.shape[2:4]
        at = np.unravel_index(positions(height * width, limit, rng), (height, width))
        return windows[:, :, at[0], at[1]].transpose(0, 2, 1, 3, 4).reshape(-1, len(self.matrix))

    def padding(self, sizes, spans, strides):
        mode = self.attributes.get("auto_pad", b"NOTSET")
        if mode == b"VALID":
            return [(0, 0), (0, 0)]
        if mode == b"NOTSET":
            pads = self.attributes.get("pads", [0] * 4)
            return [(pads[0], pads[2]), (pads[1], pads[3])]
        totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, span, s in zip(sizes, spans, strides)]
        small = [(t // 2, t - t // 2) for t in totals]
        return small if mode == b"SAME_UPPER" else [pair[::-1] for pair in small]

    def observe(self, x, limit, rng):
        rows = self.rows(x, limit, rng).astype(np.float64)
        self.moment += rows.T @ rows
        self.count += len(rows)

    def decompose(self):
        """U and V of full rank, and energy and cost by rank from 1; the last entry is the layer as it is."""
        values, vectors = np.linalg.eigh(self.moment / self.count)
        self.moment = None
        kept = values > RANK_TOLERANCE ** 2
        roots, vectors = np.sqrt(values[kept]), vectors[:, kept]
        left, singular, right = np.linalg.svd(roots[:, None] * (vectors.T @ self.matrix), full_matrices=False)
        self.u, self.v = vectors / roots @ left, singular[:, None] * right
        energy, cost = np.cumsum(singular ** 2), np.arange(1, len(singular) + 1) * sum(self.matrix.shape)
        smaller = cost < self.matrix.size
        total = energy[-1] if len(energy) and energy[-1] > 0 else 1.0
        self.energy = np.append(energy[smaller] / total, 1.0)
        self.cost = np.append(cost[smaller], self.matrix.size)

    def nodes(self, rank):
        """Two nodes in place of this layer's, and their two tensors."""
        u, v = self.u[:, :rank].astype(np.float32), self.v[:rank].astype(np.float32)
        node = self.node
        base = node.name or node.output[0]
        names = [f"{base}/lagrangian.{part}" for part in "UV"]
        hidden = f"{base}/lagrangian.hidden"
        rest = list(node.input)[2:]
        if node.op_type == "Conv":
            out, inputs, *kernel = self.tensor.shape
            u, v = u.T.reshape(rank, inputs, *kernel), v.T.reshape(out, rank, 1, 1)
            first, second = dict(self.attributes), {"kernel_shape": [1, 1]}
        elif node.op_type == "Gemm":
            first, second = {}, self.attributes | {"transB": 0}
        else:
            first, second = {}, {}
        nodes = [helper.make_node(node.op_type, [node.input[0], names[0]], [hidden], f"{base}/first", **first),
                 helper.make_node(node.op_type, [hidden, names[1], *rest], list(node.output), base, **second)]
        return nodes, [numpy_helper.from_array(np.ascontiguousarray(t), name) for t, name in zip((u, v), names)]


def positions(count, limit, rng):
    return np.arange(count) if count <= limit else np.sort(rng.choice(count, limit, replace=False))


def layers(model):
    tensors = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    readers = [name for node in model.graph.node for name in node.input]
    found = []
    for node in model.graph.node:
        dims = list(tensors[node.input[1]].dims) if len(node.input) > 1 and node.input[1] in tensors else []
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        fits = node.op_type == "Conv" and len(dims) == 4 and attributes.get("group", 1) == 1
        fits |= node.op_type == "Gemm" and len(dims) == 2 and not attributes.get("transA", 0)
        fits |= node.op_type == "MatMul" and len(dims) == 2
        if fits and readers.count(node.input[1]) == 1:
            found.append(Layer(node, tensors[node.input[1]]))
    return found


class Runner:
    def __init__(self, model, batch):
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0]
        self.fixed = isinstance(self.input.shape[0], int)
        self.batch = self.input.shape[0] if self.fixed else batch

    def batches(self, images, args, names):
        """Values by name, the input's included, batch by batch; a fixed batch is filled up with repeats."""
        for start in range(0, len(images), self.batch):
            x = images[start:start + self.batch]
            count, x = len(x), np.resize(x, (self.batch, *x.shape[1:])) if self.fixed else x
            x = ((x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1) - args.mean) / args.std).astype(np.float32)
            values = self.session.run(names, {self.input.name: x}) if names else []
            yield {name: y[:count] for name, y in zip([*names, self.input.name], [*values, x])}


def top1(model, images, labels, args):
    runner = Runner(model, args.batch)
    name = runner.session.get_outputs()[0].name
    classes = [values[name].reshape(len(values[name]), -1).argmax(1) for values in runner.batches(images, args, [name])]
    return float((np.concatenate(classes) == labels).mean())


def calibrate(model, found, images, args):
    """Adds up the second moments of what each layer reads."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs, outputs = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    names = [name for name in dict.fromkeys(layer.node.input[0] for layer in found) if name not in inputs]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    rng = np.random.default_rng(0)
    for values in Runner(watched, args.batch).batches(images, args, names):
        for layer in found:
            layer.observe(values[layer.node.input[0]], args.rows, rng)


def choose(found, budget):
    """Index into energy and cost for each layer, or None if even rank 1 everywhere is too large."""
    def at(price):
        picks = [int(np.argmax(layer.energy - price * layer.cost)) for layer in found]
        return picks, sum(layer.cost[p] for layer, p in zip(found, picks))

    if sum(layer.cost.min() for layer in found) > budget:
        return None
    picks, spent = at(0.0)
    if spent <= budget:
        return picks
    low, high = 0.0, 1e-12
    while at(high)[1] > budget:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[1] <= budget else (middle, high)
    return at(high)[0]


def rewritten(model, found, picks):
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    ranks = {layer.node.output[0]: (layer, pick + 1) for layer, pick in zip(found, picks) if pick + 1 < len(layer.cost)}
    nodes = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.output[0] not in ranks:
            nodes.append(node)
            continue
        layer, rank = ranks[node.output[0]]
        pair, tensors = layer.nodes(rank)
        nodes += pair
        graph.initializer.extend(tensors)
        for field in (graph.initializer, graph.input):
            for stale in [t for t in field if t.name == node.input[1]]:
                field.remove(stale)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result)
    return result


def main():
    numbers = lambda text: np.array([float(v) for v in text.split(",")], np.float32).reshape(-1, 1, 1)
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--ratios", default="1.5,2,3,4")
    parser.add_argument("--mean", type=numbers, default=numbers("0"))
    parser.add_argument("--std", type=numbers, default=numbers("1"))
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--json")
    parser.add_argument("--save-dir", type=pathlib.Path)
    args = parser.parse_args()
    images, labels = np.load(args.images), np.load(args.labels)
    model = load(args.model)
    found, before = layers(model), parameters(model)
    calibrate(model, found, np.load(args.calib)[:args.samples], args)
    for layer in found:
        layer.decompose()
    original = top1(model, images, labels, args)
    fixed = before - sum(layer.matrix.size for layer in found)
    cells, ratios = [], args.ratios.split(",")
    for ratio in ratios:
        picks = choose(found, before / float(ratio) - fixed)
        if picks is None:
            cells.append({"ratio": float(ratio), "reached": None, "top1": None})
            continue
        small = rewritten(model, found, picks)
        if args.save_dir:
            args.save_dir.mkdir(parents=True, exist_ok=True)
            onnx.save(small, args.save_dir / f"{pathlib.Path(args.model).stem}-lagrangian-{ratio}x.onnx")
        cells.append({"ratio": float(ratio), "reached": before / parameters(small), "top1": top1(small, images, labels, args)})
    shown = ["-" if cell["top1"] is None else f"{100 * cell['top1']:.1f}" for cell in cells]
    print(f"| top-1 %, original {100 * original:.1f} | " + " | ".join(f"{r}×" for r in ratios) + " |")
    print("|---|" + "---|" * len(ratios))
    print(f"| {NAME} | " + " | ".join(shown) + " |")
    if args.json:
        rows = [{"name": NAME, "kind": "baseline", "cells": cells}]
        report = {"model": pathlib.Path(args.model).stem, "images": len(images), "original": original, "rows": rows}
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
