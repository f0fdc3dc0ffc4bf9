# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1"]
# ///
"""Trains the weights of an ONNX classifier further, in place: the same graph, the same tensors, other numbers.

    uv run tools/finetune.py small.onnx tuned.onnx --images X.npy --teacher original.onnx
    uv run tools/finetune.py small.onnx tuned.onnx --images X.npy --labels Y.npy [--test-images T.npy --test-labels L.npy]

What several nodes read is one initializer, hence one parameter here: its gradient is the sum over its readers, and it is
stored once afterwards as before. Nothing needs the network's source code: torch runs the ONNX graph node by node.

    trained   float32 initializers that are weights or biases of Conv, Gemm and MatMul or scales and shifts of
              BatchNormalization, also behind an Identity; --only REGEX: of these, the ones whose name matches
              (`--only jmd`: the factors and biases that onnx-jmd wrote)
    constant  all else: statistics of batch norms, constants of other operators
    loss      --labels: cross entropy, smoothed by 0.05; --teacher: Kullback-Leibler divergence from the classes of that
              model, both at temperature 2, without labels
    steps     AdamW, a one-cycle schedule, gradients clipped at norm 1; images mirrored and shifted by up to a
              fourteenth of their side (--no-augment: neither, --no-flip: shifted only). --lr 1e-3 unless given: 3e-3 serves
              networks that guess, 3e-4 such that lost hardly anything
    images    .npy [count, channels, height, width]; (scale * x - mean) / std, scale 1/255 for bytes and else 1

Before anything is trained ONNX Runtime must agree with torch on the model that was read, and before anything is put in
place on the model that was written: 1e-4 of the largest output. The weights are those after the last step. The output is
written beside its target and renamed; if anything fails, nothing is written, and the exit code is 1.

    --json FILE  what was done and what came of it; top-1 by ONNX Runtime, if there are test images
    --bf16       convolutions in bfloat16 while training; weights stay float32
    --device     cpu unless given (cuda)
"""
import argparse, json, math, os, pathlib, re, sys, time
import numpy as np, onnx, onnxruntime, torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

# Of the largest output: torch and ONNX Runtime round differently.
TOLERANCE = 1e-4
SMOOTHING, TEMPERATURE = 0.05, 2.0
# Input positions whose initializers are trained.
WEIGHTS = {"Conv": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2)}


class Refused(Exception):
    """A sentence for the user."""


# Operators: attributes and inputs (None where left out) to the first output. A sliding window has as many axes as its
# kernel; torch pads both ends alike, ONNX may not.


def windows(a, kernel, x):
    """Strides, dilations and pads at both ends."""
    strides, dilations = (a.get(name) or [1] * len(kernel) for name in ("strides", "dilations"))
    pads = a.get("pads") or [0] * (2 * len(kernel))
    begin, end = pads[:len(kernel)], pads[len(kernel):]
    mode = a.get("auto_pad", b"NOTSET").decode()
    if mode.startswith("SAME"):
        total = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
                 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        begin, end = (less, more) if mode == "SAME_UPPER" else (more, less)
    elif mode == "VALID":
        begin = end = [0] * len(kernel)
    return strides, dilations, begin, end


def padded(x, begin, end, value=0.0):
    return F.pad(x, [n for pair in zip(reversed(begin), reversed(end)) for n in pair], value=value)


def conv(a, x, weight, bias=None):
    strides, dilations, begin, end = windows(a, weight.shape[2:], x)
    if begin != end:
        x, begin = padded(x, begin, end), 0
    return [F.conv1d, F.conv2d, F.conv3d][weight.ndim - 3](x, weight, bias, strides, begin, dilations, a.get("group", 1))


def max_pool(a, x):
    kernel = a["kernel_shape"]
    strides, dilations, begin, end = windows(a, kernel, x)
    if begin != end or any(2 * p > k for p, k in zip(begin, kernel)):
        x, begin = padded(x, begin, end, -math.inf), 0
    pool = [F.max_pool1d, F.max_pool2d, F.max_pool3d][len(kernel) - 1]
    return pool(x, kernel, strides, begin, dilations, bool(a.get("ceil_mode", 0)))


def average_pool(a, x):
    kernel = a["kernel_shape"]
    strides, _, begin, end = windows(a, kernel, x)
    pool = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][len(kernel) - 1]
    ceil, everything = bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0))
    if begin == end and all(2 * p <= k for p, k in zip(begin, kernel)):
        return pool(x, kernel, strides, begin, ceil, everything)
    share = 1.0 if everything else pool(padded(torch.ones_like(x[:1, :1]), begin, end), kernel, strides, 0, ceil)
    return pool(padded(x, begin, end), kernel, strides, 0, ceil) / share


def batch_norm(a, x, scale, shift, mean, variance):
    if a.get("training_mode", 0):
        raise Refused("statistics of the batch (training_mode) cannot be trained further")
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, a.get("epsilon", 1e-5))


def gemm(a, x, y, z=None):
    out = a.get("alpha", 1.0) * ((x.mT if a.get("transA", 0) else x) @ (y.mT if a.get("transB", 0) else y))
    return out if z is None else out + a.get("beta", 1.0) * z


def clip(a, x, low=None, high=None):
    bound = lambda value, name: a.get(name) if value is None else value.item()
    low, high = bound(low, "min"), bound(high, "max")
    return x if low is None and high is None else x.clamp(low, high)


def mean(a, x, axes=None):
    axes = a.get("axes") if axes is None else axes.tolist()
    if not axes and a.get("noop_with_empty_axes", 0):
        return x
    return x.mean(axes or list(range(x.ndim)), keepdim=bool(a.get("keepdims", 1)))


def softmax(a, x):
    if "axis" in a or a["opset"] >= 13:
        return x.softmax(a.get("axis", -1))
    return x.flatten(1).softmax(1).reshape(x.shape)


def reshape(a, x, shape):
    wanted = [x.shape[i] if n == 0 and not a.get("allowzero", 0) else n for i, n in enumerate(shape.tolist())]
    if wanted and wanted[0] == a["batch"]:
        wanted[0] = x.shape[0]
    return x.reshape(wanted)


def pad(a, x, pads=None, value=None, axes=None):
    pads = a["pads"] if pads is None else pads.tolist()
    axes = list(range(x.ndim)) if axes is None else [n % x.ndim for n in axes.tolist()]
    begin, end = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(axes):
        begin[axis], end[axis] = pads[i], pads[i + len(axes)]
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        return padded(x, begin, end, a.get("value", 0.0) if value is None else value.item())
    flat = [n for pair in zip(reversed(begin[2:]), reversed(end[2:])) for n in pair]
    return F.pad(x, flat, {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


def squeeze(a, x, axes=None):
    axes = a.get("axes") if axes is None else axes.tolist()
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(a, x, axes=None):
    axes = a["axes"] if axes is None else axes.tolist()
    for axis in sorted(n % (x.ndim + len(axes)) for n in axes):
        x = x.unsqueeze(axis)
    return x


def gather(a, x, index):
    axis = a.get("axis", 0) % x.ndim
    picked = x.index_select(axis, index.flatten().to(x.device) % x.shape[axis])
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1:]])


def slices(a, x, starts=None, ends=None, axes=None, steps=None):
    listed = lambda value, name: a.get(name) if value is None else value.tolist()
    starts, ends, axes, steps = map(listed, (starts, ends, axes, steps), ("starts", "ends", "axes", "steps"))
    for i, axis in enumerate(axes or range(len(starts))):
        # torch has no steps backwards.
        picked = range(x.shape[axis])[slice(starts[i], ends[i], steps[i] if steps else 1)]
        forward = picked.step > 0
        part = slice(picked.start, picked.stop, picked.step) if forward else torch.tensor(list(picked), dtype=torch.int64)
        x = x[(slice(None),) * (axis % x.ndim) + (part,)]
    return x


def constant_of_shape(a, shape):
    value = a.get("value")
    value = torch.zeros(1) if value is None else torch.from_numpy(numpy_helper.to_array(value).copy())
    return value.expand(shape.tolist()).clone()


def divide(_, x, y):
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def cast(a, x):
    return x.to(torch.from_numpy(np.zeros(0, helper.tensor_dtype_to_np_dtype(a["to"]))).dtype)


OPERATORS = {
    "Conv": conv, "BatchNormalization": batch_norm, "Gemm": gemm, "MaxPool": max_pool, "AveragePool": average_pool,
    "Clip": clip, "ReduceMean": mean, "Softmax": softmax, "Reshape": reshape, "Pad": pad, "Squeeze": squeeze,
    "Unsqueeze": unsqueeze, "Gather": gather, "Slice": slices, "Div": divide, "Cast": cast,
    "ConstantOfShape": constant_of_shape,
    "MatMul": lambda _, x, y: x @ y,
    "Add": lambda _, x, y: x + y,
    "Sub": lambda _, x, y: x - y,
    "Mul": lambda _, x, y: x * y,
    "Relu": lambda _, x: F.relu(x),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Sigmoid": lambda _, x: x.sigmoid(),
    "HardSigmoid": lambda a, x: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda _, x: F.hardswish(x),
    "GlobalAveragePool": lambda _, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "Flatten": lambda a, x: x.reshape(math.prod(x.shape[:a.get("axis", 1)]), -1),
    "Transpose": lambda a, x: x.permute(a.get("perm") or list(reversed(range(x.ndim)))),
    "Concat": lambda a, *x: torch.cat(x, a["axis"]),
    "Shape": lambda a, x: torch.tensor(x.shape[a.get("start", 0):a.get("end", None)]),
    "Identity": lambda _, x: x,
    "Dropout": lambda _, x, *unused: x,
}


class Node:
    def __init__(self, proto, opset, batch):
        self.name, self.kind = proto.name or proto.output[0], proto.op_type
        self.inputs, self.output = list(proto.input), proto.output[0]
        if proto.domain not in ("", "ai.onnx") or self.kind not in OPERATORS:
            domain = "" if proto.domain in ("", "ai.onnx") else f" of {proto.domain}"
            raise Refused(f"node '{self.name}': the operator {self.kind}{domain} is not known to this script")
        if self.kind != "BatchNormalization" and any(proto.output[1:]):
            if self.kind != "Dropout":
                raise Refused(f"node '{self.name}': {self.kind} with more than one output is not known to this script")
        self.attributes = {x.name: helper.get_attribute_value(x) for x in proto.attribute}
        self.attributes |= {"opset": opset, "batch": batch}
        self.done_with = []


class Network(nn.Module):
    """An ONNX graph with one input as a module; `names[i]` is the initializer of `weights[i]`."""

    def __init__(self, model, device="cpu", only=""):
        super().__init__()
        graph = model.graph
        opset = next((x.version for x in model.opset_import if x.domain in ("", "ai.onnx")), 0)
        stored = {x.name: x for x in graph.initializer}
        inputs = [x for x in graph.input if x.name not in stored]
        if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            raise Refused("the model must have one input, of float32")
        self.input = inputs[0].name
        self.shape = [d.dim_value if d.HasField("dim_value") else None for d in inputs[0].type.tensor_type.shape.dim]
        batch = self.shape[0] if self.shape else None
        self.device = torch.device(device)
        self.constants = {name: torch.from_numpy(numpy_helper.to_array(x).copy()) for name, x in stored.items()}
        self.nodes, origin = [], {name: name for name in stored}
        for proto in graph.node:
            if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
                self.constants[proto.output[0]] = constant(proto)
                continue
            self.nodes.append(Node(proto, opset, batch))
            if proto.op_type == "Identity" and proto.input[0] in origin:
                origin[proto.output[0]] = origin[proto.input[0]]
        read = [origin[x] for node in self.nodes for i, x in enumerate(node.inputs)
                if i in WEIGHTS.get(node.kind, ()) and x in origin]
        self.names = [name for name in dict.fromkeys(read)
                      if self.constants[name].dtype == torch.float32 and re.search(only, name)]
        kept = lambda x: x.to(self.device, memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)
        self.weights = nn.ParameterList(nn.Parameter(kept(self.constants.pop(name))) for name in self.names)
        # Integers are shapes and axes and stay where they can be read.
        self.constants = {k: kept(x) if x.is_floating_point() else x for k, x in self.constants.items()}
        self.output = graph.output[0].name
        made = {node.output: node for node in self.nodes}
        last = made.get(self.output)
        # Losses are of what goes into a softmax at the end.
        self.logits = last.inputs[0] if last and last.kind == "Softmax" else self.output
        unread = {self.output, self.logits, ""}
        for node in reversed(self.nodes):
            node.done_with = [x for x in dict.fromkeys(node.inputs) if x not in unread]
            unread.update(node.inputs)

    def forward(self, x, logits=False):
        values = dict(self.constants) | dict(zip(self.names, self.weights)) | {self.input: x.to(self.device), "": None}
        for node in self.nodes:
            try:
                values[node.output] = OPERATORS[node.kind](node.attributes, *(values[name] for name in node.inputs))
            except Exception as error:
                raise Refused(f"node '{node.name}' ({node.kind}): {first_line(error)}") from error
            for name in node.done_with:
                del values[name]
        return values[self.logits if logits else self.output].flatten(1)

    def store(self, model):
        """Puts the weights into the initializers they came from, in the form in which those are stored."""
        values = dict(zip(self.names, self.weights))
        for tensor in model.graph.initializer:
            if tensor.name in values:
                data = values[tensor.name].detach().cpu().contiguous().numpy()
                if tensor.float_data:
                    tensor.float_data[:] = data.ravel().tolist()
                else:
                    tensor.raw_data = data.astype("<f4").tobytes()


def constant(proto):
    attribute = proto.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    kinds = {"value_int": torch.int64, "value_ints": torch.int64, "value_float": torch.float32, "value_floats": torch.float32}
    if attribute.name not in kinds:
        raise Refused(f"node '{proto.name or proto.output[0]}': a Constant by {attribute.name} is not known to this script")
    return torch.tensor(value, dtype=kinds[attribute.name])


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read(path, reader):
    try:
        return reader(path)
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise Refused(f"{path}: {text}") from error


def load(path):
    def reader(path):
        onnx.checker.check_model(path)
        return onnx.load(path)
    return read(path, reader)


class Images:
    """Pixels as stored, and the map to what a model reads."""

    def __init__(self, pixels, scale=None, mean=(), std=()):
        self.pixels = pixels
        if pixels.ndim < 2 or not len(pixels) or not np.can_cast(pixels.dtype, np.float32, "same_kind"):
            raise Refused(f"images of shape {list(pixels.shape)} and type {pixels.dtype}: "
                          "expected [count, channels, height, width], bytes or floats")
        self.scale = (1 / 255 if pixels.dtype == np.uint8 else 1.0) if scale is None else scale
        for name, values in (("--mean", mean), ("--std", std)):
            if len(values) not in (0, 1, pixels.shape[1]):
                raise Refused(f"{name} has {len(values)} values for {pixels.shape[1]} channels: give one, or one a channel")
        column = lambda values: torch.tensor(values, dtype=torch.float32).reshape(-1, *[1] * (pixels.ndim - 2))
        self.mean, self.std = column(list(mean) or [0.0]), column(list(std) or [1.0])
        if not self.scale or not math.isfinite(self.scale) or not self.mean.isfinite().all() \
                or not self.std.isfinite().all() or not self.std.all():
            raise Refused("--scale, --mean and --std must be finite, --scale and --std not zero")

    def __len__(self):
        return len(self.pixels)

    def raw(self, pick):
        return torch.from_numpy(np.array(self.pixels[pick]))

    def prepared(self, raw):
        x = (raw.float() * self.scale - self.mean) / self.std
        return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x

    def fit(self, network, what):
        wanted, given = network.shape, list(self.pixels.shape)
        if wanted and (len(wanted) != len(given) or any(w not in (None, g) for w, g in zip(wanted[1:], given[1:]))):
            raise Refused(f"{what} are {given[1:]} each, the model reads {['?' if w is None else w for w in wanted[1:]]}")


def augment(raw, flip, chance):
    """Mirrored, and shifted by up to a fourteenth of the side, each image by itself."""
    count, channels, height, width = raw.shape
    if flip:
        raw = torch.where(torch.rand(count, 1, 1, 1, generator=chance) < 0.5, raw.flip(3), raw)
    reach = max(1, round(min(height, width) / 14))
    dy, dx = torch.randint(0, 2 * reach + 1, (2, count), generator=chance)
    rows = (torch.arange(height) + dy[:, None])[:, None, :, None]
    columns = (torch.arange(width) + dx[:, None])[:, None, None, :]
    image, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return F.pad(raw, (reach,) * 4)[image, channel, rows, columns]


def runtime_scores(model, x, fixed):
    """By ONNX Runtime; `fixed` is the number of samples that the model reads at a time, if it is fixed."""
    source = str(model) if isinstance(model, (str, os.PathLike)) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name, size = [i.name for i in session.get_inputs()][0], fixed or len(x)
    parts = [x[i:i + size] for i in range(0, len(x), size)]
    full = [np.concatenate([p, np.repeat(p[-1:], size - len(p), 0)]) for p in parts]
    return np.concatenate([session.run(None, {name: p})[0].reshape(size, -1)[:len(q)] for p, q in zip(full, parts)])


def agree(network, model, images, what):
    """Refuses unless torch and ONNX Runtime give the same outputs."""
    x = images.prepared(images.raw(slice(0, 16)))
    try:
        theirs = runtime_scores(model, x.contiguous().numpy(), network.shape[0] if network.shape else None)
    except Exception as error:
        raise Refused(f"{what}: ONNX Runtime cannot run it: {first_line(error)}") from error
    with torch.no_grad():
        ours = network(x).cpu().numpy()
    if ours.shape != theirs.shape:
        raise Refused(f"{what}: torch gives {list(ours.shape)}, ONNX Runtime {list(theirs.shape)}")
    error = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
    if not error <= TOLERANCE:
        raise Refused(f"{what}: torch and ONNX Runtime differ by {error:.1e} of the largest output: nothing written")
    return error


def top1(model, network, images, labels):
    """Share of right classes, by ONNX Runtime."""
    right, fixed = 0, network.shape[0] if network.shape else None
    options = dict(providers=["CPUExecutionProvider"])
    session = onnxruntime.InferenceSession(str(model), **options)
    size = fixed or 250
    for i in range(0, len(images), size):
        x = images.prepared(images.raw(slice(i, i + size))).contiguous().numpy()
        count = len(x)
        x = np.concatenate([x, np.repeat(x[-1:], size - count, 0)]) if fixed and count < size else x
        scores = session.run(None, {network.input: x})[0].reshape(len(x), -1)[:count]
        right += int((scores.argmax(1) == labels[i:i + count]).sum())
    return right / len(images)


def train(network, images, labels=None, teacher=None, epochs=3, lr=1e-3, batch=128, seed=0, shifted=True, flip=True,
          bf16=False, remembered=None, say=lambda text: None):
    """Loss of every epoch. `remembered` keeps the teacher's scores by step: other networks trained with the same seed on
    the same images are shown the same batches."""
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    batch = min(batch, len(images))
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=1e-4)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2, cycle_momentum=False)
    low = lambda: torch.autocast(network.device.type, torch.bfloat16, enabled=bf16)
    losses, step = [], 0
    for epoch in range(epochs):
        start, total = time.time(), 0.0
        picks = torch.randperm(len(images), generator=chance)[:len(images) // batch * batch].split(batch)
        for pick in picks:
            raw = images.raw(pick.numpy())
            x = images.prepared(augment(raw, flip, chance) if shifted else raw)
            with low():
                scores = network(x, logits=True)
            scores = scores.float()
            if teacher is None:
                loss = F.cross_entropy(scores, labels[pick].to(scores.device), label_smoothing=SMOOTHING)
            else:
                wanted = remembered.get((seed, step)) if remembered is not None else None
                if wanted is None:
                    with torch.no_grad(), low():
                        wanted = F.log_softmax(teacher(x, logits=True).float() / TEMPERATURE, 1)
                    if remembered is not None:
                        remembered[seed, step] = wanted
                found = F.log_softmax(scores / TEMPERATURE, 1)
                loss = TEMPERATURE ** 2 * F.kl_div(found, wanted, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
                raise Refused(f"the loss or its gradient is not finite at step {step + 1} of {steps} "
                              f"(loss {loss.item():.3g}): nothing written; try a smaller --lr than {lr:g}")
            optimizer.step()
            schedule.step()
            total, step = total + loss.item(), step + 1
        losses.append(total / len(picks))
        say(f"epoch {epoch + 1} of {epochs}: loss {losses[-1]:.4f}, {time.time() - start:.0f} s")
    return losses


def write(network, model, path, images):
    """The model with the network's weights, checked before it takes its place. Gives the difference to ONNX Runtime."""
    path = pathlib.Path(path)
    network.store(model)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        onnx.save(model, beside)
        onnx.checker.check_model(beside, full_check=True)
        error = agree(network, beside, images, "the trained model")
        os.replace(beside, path)
    except OSError as problem:
        raise Refused(f"{path}: {problem.strerror or problem}") from problem
    finally:
        beside.unlink(missing_ok=True)
    return error


def labels_of(path, count, classes):
    labels = read(path, np.load)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != count:
        raise Refused(f"{path}: expected {count} integers, one an image, got {labels.dtype} {list(labels.shape)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise Refused(f"{path}: labels from {labels.min()} to {labels.max()}, the model tells {classes} classes apart")
    return labels.astype(np.int64)


def classes_of(network, images):
    with torch.no_grad():
        return network(images.prepared(images.raw(slice(0, 1)))).shape[1]


def tune(args):
    source, target = pathlib.Path(args.model), pathlib.Path(args.out)
    if (args.labels is None) == (args.teacher is None):
        raise Refused("give either --labels or --teacher, and not both: they are two ways to say what is right")
    if (args.test_images is None) != (args.test_labels is None):
        raise Refused("--test-images and --test-labels go together")
    for path in filter(None, (args.model, args.teacher)):
        if os.path.realpath(path) == os.path.realpath(target):
            raise Refused(f"{target}: is also read; write to another file")
    if not target.absolute().parent.is_dir() or target.is_dir():
        raise Refused(f"{target}: cannot be written: no such folder, or a folder of that name")
    if args.epochs < 1 or args.batch < 1 or not (args.lr > 0 and math.isfinite(args.lr)):
        raise Refused("--epochs, --batch and --lr must be positive")
    try:
        re.compile(args.only), torch.zeros(1, device=args.device)
    except (re.error, RuntimeError, AssertionError) as error:
        raise Refused(f"--only '{args.only}', --device {args.device}: {first_line(error)}") from error
    opened = lambda path: read(path, lambda p: Images(np.load(p, mmap_mode="r"), args.scale, args.mean, args.std))
    model, images = load(args.model), opened(args.images)
    network = Network(model, args.device, args.only)
    if not network.names:
        raise Refused(f"{args.model}: no float32 weights" + (f" named like '{args.only}'" if args.only else "") + " to train")
    images.fit(network, args.images)
    agree(network, args.model, images, args.model)
    if not args.no_augment and images.pixels.ndim != 4:
        raise Refused("only images [count, channels, height, width] can be shifted and mirrored: --no-augment")
    classes, labels, teacher = classes_of(network, images), None, None
    if args.labels:
        labels = torch.from_numpy(labels_of(args.labels, len(images), classes))
    else:
        teacher = Network(load(args.teacher), args.device)
        images.fit(teacher, args.images)
        agree(teacher, args.teacher, images, args.teacher)
        if classes_of(teacher, images) != classes:
            raise Refused(f"{args.teacher}: {classes_of(teacher, images)} classes, {args.model} {classes}")
    test = None
    if args.test_images:
        test = opened(args.test_images)
        test.fit(network, args.test_images)
        test = test, labels_of(args.test_labels, len(test), classes)
    report = {"model": source.name, "loss": "labels" if args.labels else "distill", "images": len(images),
              "epochs": args.epochs, "lr": args.lr, "batch": args.batch, "seed": args.seed,
              "tensors": len(network.names), "parameters": sum(p.numel() for p in network.weights),
              "top1_before": top1(source, network, *test) if test else None}
    start = time.time()
    report["losses"] = train(network, images, labels, teacher, args.epochs, args.lr, args.batch, args.seed,
                             not args.no_augment, not args.no_flip, args.bf16, say=lambda text: print(text, file=sys.stderr))
    report["seconds"] = time.time() - start
    report["runtime_difference"] = write(network, model, target, images)
    report["top1_after"] = top1(target, network, *test) if test else None
    return report


def main():
    numbers = lambda text: [float(x) for x in text.split(",")]
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels")
    parser.add_argument("--teacher")
    parser.add_argument("--test-images")
    parser.add_argument("--test-labels")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--mean", type=numbers, default=[])
    parser.add_argument("--std", type=numbers, default=[])
    parser.add_argument("--no-augment", action="store_true")
    parser.add_argument("--no-flip", action="store_true")
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json")
    try:
        args = parser.parse_args()
        report = tune(args)
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    except Refused as refusal:
        sys.exit(str(refusal))
    print(f"{report['parameters']:,} parameters in {report['tensors']} tensors, {report['seconds']:.0f} s")
    if report["top1_after"] is not None:
        print(f"top-1 {100 * report['top1_before']:.2f} % → {100 * report['top1_after']:.2f} %")


if __name__ == "__main__":
    main()
