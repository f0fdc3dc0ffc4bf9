"""Small networks of kinds that torchvision and timm do not have small enough, and weights for all."""
import numpy as np, torch
from torch import nn
from torch.nn import functional as F


def fill(model, name, noise=0.3):
    """Weights of low rank plus noise, and statistics of batch norms, from a seed that follows from the name."""
    rng = np.random.default_rng(list(name.encode()))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((module.running_mean, -0.1, 0.1), (module.running_var, 0.6, 1.4)):
                tensor.copy_(torch.from_numpy(rng.uniform(low, high, tensor.shape)))
            if module.weight is not None:
                module.weight.data.copy_(torch.from_numpy(rng.uniform(0.7, 1.3, module.weight.shape)))
                module.bias.data.copy_(torch.from_numpy(rng.normal(0, 0.05, module.bias.shape)))
    for key, parameter in model.named_parameters():
        if parameter.dim() < 2 or not key.endswith("weight"):
            if key.endswith("bias"):
                parameter.data.copy_(torch.from_numpy(rng.normal(0, 0.05, parameter.shape)))
            continue
        out, rest = parameter.shape[0], parameter[0].numel()
        rank = max(1, min(out, rest) // 4)
        low = rng.standard_normal((out, rank)) @ rng.standard_normal((rank, rest)) / np.sqrt(rank)
        values = (low + noise * rng.standard_normal((out, rest))) * np.sqrt(1.6 / rest)
        parameter.data.copy_(torch.from_numpy(values.reshape(parameter.shape)))
    return model.eval()


def block(inputs, outputs, size=3, stride=1, act=nn.ReLU, conv=nn.Conv2d, norm=nn.BatchNorm2d, **options):
    return nn.Sequential(conv(inputs, outputs, size, stride, size // 2, bias=False, **options), norm(outputs), act())


class UNet(nn.Module):
    def __init__(self, widths=(16, 32, 64), outputs=2):
        super().__init__()
        pair = lambda i, o: nn.Sequential(block(i, o), block(o, o))
        self.down = nn.ModuleList(pair(i, o) for i, o in zip((3, *widths), widths))
        self.bottom = pair(widths[-1], 2 * widths[-1])
        ups = list(zip((2 * widths[-1], *widths[:0:-1]), widths[::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in ups)
        self.join = nn.ModuleList(pair(2 * o, o) for _, o in ups)
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x):
        kept = []
        for down in self.down:
            kept.append(down(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.bottom(x)
        for up, join in zip(self.up, self.join):
            x = join(torch.cat([up(x), kept.pop()], 1))
        return self.head(x)


class Bottle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = block(width, width // 2, 1, act=nn.SiLU), block(width // 2, width, act=nn.SiLU)

    def forward(self, x):
        return x + self.two(self.one(x))


class Yolo(nn.Module):
    """Backbone, feature pyramid, three heads: several outputs, Resize and Concat."""

    def __init__(self, w=16, classes=4):
        super().__init__()
        self.stem = block(3, w, stride=2, act=nn.SiLU)
        stage = lambda i: nn.Sequential(block(i, 2 * i, stride=2, act=nn.SiLU), Bottle(2 * i), Bottle(2 * i))
        self.three, self.four, self.five = nn.Sequential(stage(w), stage(2 * w)), stage(4 * w), stage(8 * w)
        self.lateral = block(16 * w, 8 * w, 1, act=nn.SiLU)
        self.merge = block(16 * w, 4 * w, act=nn.SiLU)
        self.merge2 = block(8 * w, 4 * w, act=nn.SiLU)
        self.heads = nn.ModuleList(nn.Conv2d(i, 3 * (5 + classes), 1) for i in (4 * w, 4 * w, 16 * w))

    def forward(self, x):
        three = self.three(self.stem(x))
        four = self.four(three)
        five = self.five(four)
        four = self.merge(torch.cat([F.interpolate(self.lateral(five), scale_factor=2.0), four], 1))
        three = self.merge2(torch.cat([F.interpolate(four, scale_factor=2.0), three], 1))
        return tuple(head(y) for head, y in zip(self.heads, (three, four, five)))


class Style(nn.Module):
    """Johnson's style transfer: reflected pads, instance norms, nearest upsampling."""

    def __init__(self, w=16, blocks=5):
        super().__init__()
        conv = lambda i, o, k, s=1: nn.Sequential(nn.ReflectionPad2d(k // 2), nn.Conv2d(i, o, k, s))
        norm = lambda o: nn.InstanceNorm2d(o, affine=True)
        self.head = nn.Sequential(conv(3, w, 9), norm(w), nn.ReLU(), conv(w, 2 * w, 3, 2), norm(2 * w), nn.ReLU(),
                                  conv(2 * w, 4 * w, 3, 2), norm(4 * w), nn.ReLU())
        self.body = nn.ModuleList(nn.Sequential(conv(4 * w, 4 * w, 3), norm(4 * w), nn.ReLU(), conv(4 * w, 4 * w, 3),
                                                norm(4 * w)) for _ in range(blocks))
        up = lambda i, o: nn.Sequential(nn.Upsample(scale_factor=2), conv(i, o, 3), norm(o), nn.ReLU())
        self.tail = nn.Sequential(up(4 * w, 2 * w), up(2 * w, w), conv(w, 3, 9))

    def forward(self, x):
        x = self.head(x)
        for block_ in self.body:
            x = x + block_(x)
        return self.tail(x)


class Dense(nn.Module):
    def __init__(self, w, g):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(w + i * g, g if i < 3 else w, 3, 1, 1) for i in range(4))

    def forward(self, x):
        kept = [x]
        for conv in self.convs[:-1]:
            kept.append(F.leaky_relu(conv(torch.cat(kept, 1)), 0.2))
        return x + 0.2 * self.convs[-1](torch.cat(kept, 1))


class Esrgan(nn.Module):
    def __init__(self, w=24, blocks=4):
        super().__init__()
        self.first = nn.Conv2d(3, w, 3, 1, 1)
        self.body = nn.Sequential(*(Dense(w, w // 2) for _ in range(blocks)))
        self.up = nn.Sequential(nn.Conv2d(w, 4 * w, 3, 1, 1), nn.PixelShuffle(2), nn.PReLU(), nn.Conv2d(w, 3, 3, 1, 1))

    def forward(self, x):
        x = self.first(x)
        return self.up(x + self.body(x))


class Aspp(nn.Module):
    """DeepLab: dilated stages, parallel dilations, bilinear Resize."""

    def __init__(self, w=32, classes=5):
        super().__init__()
        self.body = nn.Sequential(block(3, w, stride=2), block(w, 2 * w, stride=2), block(2 * w, 2 * w),
                                  block(2 * w, 2 * w, dilation=1), nn.Conv2d(2 * w, 2 * w, 3, 1, 2, 2), nn.ReLU())
        self.arms = nn.ModuleList([nn.Conv2d(2 * w, w, 1), *(nn.Conv2d(2 * w, w, 3, 1, d, d) for d in (3, 6, 9))])
        self.pool = nn.Conv2d(2 * w, w, 1)
        self.project, self.head = block(5 * w, w, 1), nn.Conv2d(w, classes, 1)

    def forward(self, x):
        y = self.body(x)
        size = y.shape[2:]
        pooled = F.interpolate(self.pool(F.adaptive_avg_pool2d(y, 1)), size=size, mode="bilinear")
        y = self.head(self.project(torch.cat([*(arm(y) for arm in self.arms), pooled], 1)))
        return F.interpolate(y, scale_factor=4.0, mode="bilinear", align_corners=False)


class Inception(nn.Module):
    """Asymmetric kernels 1x7 and 7x1, parallel arms."""

    def __init__(self, w=16):
        super().__init__()
        conv = lambda i, o, k, p: nn.Sequential(nn.Conv2d(i, o, k, 1, p, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        self.stem = block(3, 4 * w, stride=2)
        arms = lambda: nn.ModuleList([
            conv(4 * w, w, 1, 0),
            nn.Sequential(conv(4 * w, w, 1, 0), conv(w, w, (1, 7), (0, 3)), conv(w, w, (7, 1), (3, 0))),
            nn.Sequential(conv(4 * w, w, 1, 0), conv(w, w, 3, 1), conv(w, w, 3, 1)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(4 * w, w, 1, 0))])
        self.mixes = nn.ModuleList(arms() for _ in range(4))
        self.fc = nn.Linear(4 * w, 10)

    def forward(self, x):
        x = self.stem(x)
        for arms in self.mixes:
            x = torch.cat([arm(x) for arm in arms], 1)
        return self.fc(x.mean((2, 3)))


def wav(width=48, layers=4, classes=29):
    """A letter recogniser on features: convolutions over time alone."""
    conv = lambda i, o, k, s=1: block(i, o, k, s, conv=nn.Conv1d, norm=nn.BatchNorm1d)
    return nn.Sequential(conv(40, width, 11, 2), *(conv(width, width, 7) for _ in range(layers)),
                         conv(width, 2 * width, 9), nn.Conv1d(2 * width, classes, 1))


class Res1d(nn.Module):
    """Residual 1-D network on the wave itself, with depthwise kernels."""

    def __init__(self, w=32):
        super().__init__()
        conv = lambda i, o, k, s=1, g=1: block(i, o, k, s, conv=nn.Conv1d, norm=nn.BatchNorm1d, groups=g)
        self.stem = conv(1, w, 80 // 2 * 2 + 1, 8)
        self.body = nn.ModuleList(nn.Sequential(conv(w, w, 9, 1, w), conv(w, 2 * w, 1), conv(2 * w, w, 1), conv(w, w, 3))
                                  for _ in range(4))
        self.fc = nn.Linear(w, 12)

    def forward(self, x):
        x = self.stem(x)
        for block_ in self.body:
            x = x + block_(x)
        return self.fc(x.mean(2))


class Res3d(nn.Module):
    """r3d, narrow: residual blocks over time, height and width."""

    def __init__(self, w=16):
        super().__init__()
        conv = lambda i, o, s=1: block(i, o, 3, s, conv=nn.Conv3d, norm=nn.BatchNorm3d)
        self.stem = conv(3, w, (1, 2, 2))
        self.stages = nn.ModuleList()
        for i, o in ((w, w), (w, 2 * w), (2 * w, 4 * w)):
            step = 1 if i == o else 2
            self.stages.append(nn.ModuleList([nn.Sequential(conv(i, o, step), conv(o, o)), nn.Sequential(conv(o, o), conv(o, o)),
                                              nn.Conv3d(i, o, 1, step)]))
        self.fc = nn.Linear(4 * w, 8)

    def forward(self, x):
        x = self.stem(x)
        for one, two, shortcut in self.stages:
            x = F.relu(shortcut(x) + one(x))
            x = F.relu(x + two(x))
        return self.fc(x.mean((2, 3, 4)))


class Crnn(nn.Module):
    """Text recogniser: convolutions, then an LSTM in both directions along the width."""

    def __init__(self, w=24):
        super().__init__()
        self.convs = nn.Sequential(block(1, w), nn.MaxPool2d(2), block(w, 2 * w), nn.MaxPool2d(2), block(2 * w, 2 * w),
                                   block(2 * w, 2 * w), nn.MaxPool2d((2, 1)))
        self.lstm = nn.LSTM(8 * w, 32, bidirectional=True)
        self.fc = nn.Linear(64, 37)

    def forward(self, x):
        x = self.convs(x).flatten(1, 2).permute(2, 0, 1)
        return self.fc(self.lstm(x)[0])


class Auto(nn.Module):
    """Autoencoder: strided convolutions down, transposed ones with output padding up, a Gemm at the neck."""

    def __init__(self, w=16, neck=24):
        super().__init__()
        self.down = nn.Sequential(block(1, w, 3, 2), block(w, 2 * w, 3, 2), block(2 * w, 4 * w, 3, 2))
        self.into, self.out, self.w = nn.Linear(64 * w, neck), nn.Linear(neck, 64 * w), w
        up = lambda i, o: nn.Sequential(nn.ConvTranspose2d(i, o, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        self.up = nn.Sequential(up(4 * w, 2 * w), up(2 * w, w), nn.ConvTranspose2d(w, 1, 4, 2, 1), nn.Sigmoid())

    def forward(self, x):
        y = self.into(self.down(x).flatten(1))
        return self.up(F.relu(self.out(y)).view(-1, 4 * self.w, 4, 4))


class Speaker(nn.Module):
    """A ResNet on spectrograms, statistics pooled over time."""

    def __init__(self, w=16):
        super().__init__()
        from timm.models.resnet import BasicBlock, ResNet
        body = ResNet(BasicBlock, [2, 2, 2, 2], in_chans=1, channels=(w, 2 * w, 4 * w, 8 * w), stem_width=w, num_classes=0)
        body.conv1, body.maxpool = nn.Conv2d(1, 64, 3, 1, 1, bias=False), nn.Identity()
        self.body, self.fc = body, nn.Linear(16 * w, 64)

    def forward(self, x):
        y = self.body.forward_features(x).mean(2)
        return self.fc(torch.cat([y.mean(2), y.std(2)], 1))


class Encoder(nn.Module):
    """Transformer over tokens: no convolution at all."""

    def __init__(self, width=64, words=100):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.body, self.fc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, words)

    def forward(self, x):
        return self.fc(self.body(self.embed(x)))


class Separable(nn.Module):
    """Depthwise and 1x1 convolutions in turn, as a keyword spotter's."""

    def __init__(self, w=48):
        super().__init__()
        pair = lambda: nn.Sequential(block(w, w, groups=w), block(w, w, 1))
        self.body = nn.Sequential(block(1, w, 5, 2), *(pair() for _ in range(4)))
        self.fc = nn.Linear(w, 12)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class Odd(nn.Module):
    """Grouped, dilated and unevenly padded kernels of other shapes than 3x3."""

    def __init__(self, w=24):
        super().__init__()
        self.one = nn.Conv2d(3, w, (5, 3), (2, 1), (2, 1))
        self.two = nn.Conv2d(w, w, 3, 1, 2, 2, groups=4)
        self.three = nn.Conv2d(w, 2 * w, (1, 5), 1, 0, (1, 2))
        self.four = nn.Conv2d(2 * w, 2 * w, 4, 2, 0)

    def forward(self, x):
        x = F.relu(self.two(F.relu(self.one(x))))
        x = F.hardswish(self.three(F.pad(x, (3, 5, 0, 1))))
        return self.four(F.pad(x, (0, 1, 2, 1)))
