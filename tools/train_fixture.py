# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1"]
# ///
"""Trains the classifier under fixtures/ on Fashion-MNIST, exports it and writes the images beside it.

    apt-get install dataset-fashion-mnist
    uv run tools/train_fixture.py [--epochs 7] [--out fixtures]

Run once; its results are committed. The network is a pre-defined residual network of basic blocks with
3, 4 and 4 blocks of 16, 48 and 96 channels, projection shortcuts, and its BatchNormalization nodes kept
in the file. Its input is pixel / 255, float32 [batch, 1, 28, 28].

Writes
    fashion-resnet.onnx          the network
    fashion-test-images.npy      uint8 [2000, 1, 28, 28], a fixed random sample of the test images
    fashion-test-labels.npy      uint8 [2000]
    fashion-calib-images.npy     uint8 [500, 1, 28, 28], other images (training set), without labels
"""
import argparse, gzip, json, pathlib, time
import numpy as np, onnx, onnxruntime, torch
import torch.nn.functional as F
from torch import nn

DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")


def idx(name, header, shape):
    return np.frombuffer(gzip.open(DATA / name).read(), np.uint8, offset=header).reshape(shape)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Network(nn.Module):
    def __init__(self, stages=((3, 16), (4, 48), (4, 96))):
        super().__init__()
        width = stages[0][1]
        layers = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        for stage, (blocks, outputs) in enumerate(stages):
            for block in range(blocks):
                layers.append(Block(width, outputs, 2 if stage and not block else 1))
                width = outputs
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.body(x), 1), 1))


def augment(x):
    """Flips and shifts by up to two pixels, per image."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    padded = F.pad(x, (2, 2, 2, 2))
    dy, dx = torch.randint(0, 5, (2, len(x)))
    rows = (torch.arange(28) + dy[:, None])[:, None, :, None]
    columns = (torch.arange(28) + dx[:, None])[:, None, None, :]
    return padded[torch.arange(len(x))[:, None, None, None], 0, rows, columns]


def accuracy(net, x, y):
    net.eval()
    with torch.inference_mode():
        guess = torch.cat([net(b).argmax(1) for b in x.split(500)])
    return 100 * float((guess == y).float().mean())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("fixtures"))
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)

    pixels = idx("train-images-idx3-ubyte.gz", 16, (60000, 1, 28, 28))
    test = idx("t10k-images-idx3-ubyte.gz", 16, (10000, 1, 28, 28))
    test_labels = idx("t10k-labels-idx1-ubyte.gz", 8, (10000,))
    x = torch.from_numpy(pixels.astype(np.float32) / 255)
    y = torch.from_numpy(idx("train-labels-idx1-ubyte.gz", 8, (60000,)).astype(np.int64))
    tx, ty = torch.from_numpy(test.astype(np.float32) / 255), torch.from_numpy(test_labels.astype(np.int64))

    net = Network().to(memory_format=torch.channels_last)
    batch = 128
    steps = args.epochs * (len(x) // batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.25)
    for epoch in range(args.epochs):
        net.train()
        start = time.time()
        for step, pick in enumerate(torch.randperm(len(x))[: len(x) // batch * batch].split(batch)):
            images = augment(x[pick]).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                scores = net(images)
            loss = F.cross_entropy(scores.float(), y[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                print(f"epoch {epoch} step {step} loss {float(loss):.3f} {time.time() - start:.0f} s", flush=True)
        print(f"epoch {epoch}: test {accuracy(net, tx, ty):.2f} %", flush=True)

    net = net.to(memory_format=torch.contiguous_format).eval()
    path = args.out / "fashion-resnet.onnx"
    # PRESERVE keeps the batch norms apart, as many exporters do; eval() makes them inference nodes.
    torch.onnx.export(net, torch.zeros(1, 1, 28, 28), path, input_names=["image"], output_names=["scores"],
                      dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}}, opset_version=17,
                      training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, dynamo=False)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores = np.concatenate([session.run(None, {"image": b})[0] for b in np.split(tx.numpy(), 20)])
    sample = np.sort(np.random.default_rng(0).permutation(10000)[:2000])
    others = np.sort(np.random.default_rng(1).permutation(60000)[:500])
    np.save(args.out / "fashion-test-images.npy", test[sample])
    np.save(args.out / "fashion-test-labels.npy", test_labels[sample])
    np.save(args.out / "fashion-calib-images.npy", pixels[others])
    right = scores.argmax(1) == test_labels
    print(json.dumps({"test_top1": 100 * float(right.mean()), "sample_top1": 100 * float(right[sample].mean()),
                      "parameters": sum(p.numel() for p in net.parameters()), "bytes": path.stat().st_size}))


if __name__ == "__main__":
    main()
