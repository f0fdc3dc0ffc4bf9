"""Networks of torchvision, timm and nets.py through both of torch's exporters."""
import contextlib, io, warnings
import timm, torch, torchvision
from timm.models import convnext, densenet, resnet, vgg, vision_transformer
from torch import nn
from . import nets

LEGACY, DYNAMO = f"torch {torch.__version__.split('+')[0]} TorchScript", f"torch {torch.__version__.split('+')[0]} dynamo"


def slim_resnet(blocks, block=resnet.BasicBlock, w=16, **options):
    sizes = dict(channels=(w, 2 * w, 4 * w, 8 * w), stem_width=w, num_classes=10)
    return resnet.ResNet(block, blocks, **{**sizes, **options})


def slim_vgg(norm):
    cfg = [16, "M", 32, "M", 64, 64, "M", 96, 96, "M", 96, 96, "M"]
    net = torchvision.models.VGG(torchvision.models.vgg.make_layers(cfg, batch_norm=norm), num_classes=10, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(2)
    net.classifier = nn.Sequential(nn.Linear(96 * 4, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return net


VIT = dict(img_size=64, patch_size=8, embed_dim=96, depth=3, num_heads=3, num_classes=10)
BOTTLE, BASIC = resnet.Bottleneck, resnet.BasicBlock
IMAGE, SMALL = (1, 3, 64, 64), (1, 3, 32, 32)
# What this exporter makes of it: folding batch norms, it leaves their kernels in float32.
MIXED = ", kernels float32: not sound"
OPEN = {"dynamic_axes": {"x": {0: "batch"}}}
WIDE = {"dynamic_axes": {"x": {0: "batch", 2: "height", 3: "width"}}}

# name: (what it is, how it is made, input, opset or options of the legacy exporter, opset of dynamo or none)
NETS = {
    "resnet18-real": ("ResNet-18", lambda: torchvision.models.resnet18(), (1, 3, 224, 224), {**OPEN}, None),
    "resnet18": ("ResNet-18, narrow", lambda: slim_resnet([2, 2, 2, 2]), IMAGE, {"opset": 11, **OPEN}, 18),
    "resnet34": ("ResNet-34, narrow", lambda: slim_resnet([3, 4, 6, 3]), IMAGE, {"opset": 17}, 20),
    "resnet50": ("ResNet-50, narrow", lambda: slim_resnet([3, 4, 6, 3], BOTTLE, 16), IMAGE, {"opset": 13, **OPEN}, 21),
    "resnext50": ("ResNeXt-50, narrow", lambda: slim_resnet([2, 2, 3, 2], BOTTLE, 16, cardinality=8, base_width=16), IMAGE, {"opset": 12}, None),
    "resnet-d": ("ResNet-D, deep stem", lambda: slim_resnet([2, 2, 2, 2], stem_type="deep", avg_down=True), IMAGE, {"opset": 14}, None),
    "vgg": ("VGG, narrow", lambda: slim_vgg(False), IMAGE, {"opset": 9}, 19),
    "vgg-bn": ("VGG with batch norms", lambda: slim_vgg(True), IMAGE, {"opset": 8, "fold": False}, None),
    "densenet": ("DenseNet, narrow", lambda: densenet.DenseNet(12, (4, 6, 8), 10), IMAGE, {"opset": 11}, 18),
    "mobilenetv2": ("MobileNetV2 0.35", lambda: timm.create_model("mobilenetv2_035", num_classes=10), IMAGE, {"opset": 10, **OPEN}, 18),
    "mobilenetv3": ("MobileNetV3 small 0.5", lambda: timm.create_model("mobilenetv3_small_050", num_classes=10), IMAGE, {"opset": 14}, None),
    "efficientnet": ("EfficientNet, test size", lambda: timm.create_model("test_efficientnet", num_classes=10), IMAGE, {"opset": 16}, 22),
    "googlenet": ("GoogLeNet", lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False), (1, 3, 96, 96), {"opset": 13}, None),
    "inception": ("Inception, 1x7 and 7x1", nets.Inception, IMAGE, {"opset": 15}, None),
    "squeezenet": ("SqueezeNet 1.1", lambda: torchvision.models.squeezenet1_1(), (1, 3, 96, 96), {"opset": 9}, None),
    "shufflenet": ("ShuffleNetV2 0.5", lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), IMAGE, {"opset": 11}, 18),
    "regnet": ("RegNetX 200MF", lambda: timm.create_model("regnetx_002", num_classes=10), IMAGE, {"opset": 13}, None),
    "repvgg": ("RepVGG-like, ByobNet test size", lambda: timm.create_model("test_byobnet", num_classes=10), IMAGE, {"opset": 17}, None),
    "ghostnet": ("GhostNet 0.5", lambda: timm.create_model("ghostnet_050", num_classes=10), IMAGE, {"opset": 17}, None),
    "dla": ("DLA-46-C", lambda: timm.create_model("dla46_c", num_classes=10), IMAGE, {"opset": 17}, None),
    "nfnet": ("NFNet, test size", lambda: timm.create_model("test_nfnet", num_classes=10), IMAGE, {"opset": 17}, None),
    "mobilevit": ("MobileViT XXS", lambda: timm.create_model("mobilevit_xxs", num_classes=10), (1, 3, 64, 64), {"opset": 17}, None),
    "convnext": ("ConvNeXt, narrow", lambda: convnext.ConvNeXt(depths=(1, 1, 3, 1), dims=(24, 48, 96, 192), num_classes=10, ls_init_value=None), IMAGE, {"opset": 17}, 20),
    "unet": ("U-Net, ConvTranspose", nets.UNet, IMAGE, {"opset": 11, **WIDE}, 18),
    "yolo": ("YOLO-like detector", nets.Yolo, (1, 3, 96, 96), {"opset": 12, **OPEN}, 18),
    "style": ("Style transfer", lambda: nets.Style(), IMAGE, {"opset": 9}, 18),
    "esrgan": ("ESRGAN-like super-resolution", nets.Esrgan, SMALL, {"opset": 11, **WIDE}, 18),
    "deeplab": ("DeepLab-like, dilations", nets.Aspp, IMAGE, {"opset": 12}, None),
    "speaker": ("Speaker ResNet on spectrograms", nets.Speaker, (1, 1, 64, 96), {"opset": 14}, None),
    "wav2letter": ("Wav2letter-like, Conv1d", nets.wav, (1, 40, 120), {"opset": 13}, 18),
    "wave1d": ("Residual Conv1d on the wave", nets.Res1d, (1, 1, 2000), {"opset": 15}, None),
    "r3d": ("3-D ResNet", nets.Res3d, (1, 3, 8, 32, 32), {"opset": 13}, 18),
    "vit": ("ViT, narrow", lambda: vision_transformer.VisionTransformer(**VIT), IMAGE, {"opset": 17}, 18),
    "encoder": ("Transformer over tokens", nets.Encoder, None, {"opset": 14}, 18),
    "crnn": ("Convolutions and LSTM", nets.Crnn, (1, 1, 32, 96), {"opset": 14}, None),
    "autoencoder": ("Autoencoder, ConvTranspose", nets.Auto, (1, 1, 32, 32), {"opset": 10}, 18),
    "keyword": ("Depthwise-separable keyword spotter", nets.Separable, (1, 1, 49, 40), {"opset": 13}, None),
    "odd": ("Grouped, dilated, uneven pads", nets.Odd, SMALL, {"opset": 13}, None),
    "mlp": ("Fully connected layers alone", lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10)), (1, 1, 28, 28), {"opset": 13}, None),
}


def quiet(net, sample, path, **options):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (sample,), path, **options)


def legacy(corpus, name, net, sample, shape_of, architecture, opset=17, fold=True, **options):
    training = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    quiet(net, sample, corpus.path(name), dynamo=False, opset_version=opset, input_names=["x"], training=training,
          do_constant_folding=fold, **options)
    corpus.add(name, architecture, LEGACY, **shape_of)


def dynamo(corpus, name, net, sample, shape_of, architecture, opset, **options):
    quiet(net, sample, corpus.path(name), dynamo=True, opset_version=opset, external_data=False, verbose=False, **options)
    corpus.add(name, f"{architecture}", DYNAMO, **shape_of)


def make(corpus):
    for name, (architecture, build, shape, options, opset) in NETS.items():
        if not (corpus.wants(name) or corpus.wants(f"{name}-dynamo")):
            continue
        torch.manual_seed(0)
        net = nets.fill(build(), name)
        sample = torch.zeros(1, 12, dtype=torch.int64) if shape is None else torch.randn(shape)
        known = {"ints": 100} if shape is None else {"shapes": {"x": list(shape)}} if "dynamic_axes" in options else {}
        if corpus.wants(name):
            legacy(corpus, name, net, sample, known, architecture, **options)
        if opset and corpus.wants(f"{name}-dynamo"):
            dynamo(corpus, f"{name}-dynamo", net, sample, {k: v for k, v in known.items() if k == "ints"}, architecture, opset)
    variants(corpus)


def variants(corpus):
    """Options of the exporters, on one network."""
    torch.manual_seed(0)
    net = nets.fill(slim_resnet([2, 2, 2, 2]), "variants")
    sample = torch.randn(IMAGE)
    what = "ResNet-18, narrow"
    for opset in (7, 8, 9, 10, 16, 20):
        if corpus.wants(f"opset{opset}"):
            legacy(corpus, f"opset{opset}", net, sample, {}, what, opset=opset)
    if corpus.wants("inputs-initializers"):
        legacy(corpus, "inputs-initializers", net, sample, {}, f"{what}, IR 3, initializers also inputs", opset=8,
               keep_initializers_as_inputs=True)
    if corpus.wants("unfolded"):
        legacy(corpus, "unfolded", net, sample, {}, f"{what}, batch norms kept", opset=15, fold=False)
    if corpus.wants("training"):
        net.train()
        training = torch.onnx.TrainingMode.TRAINING
        quiet(net, sample, corpus.path("training"), dynamo=False, opset_version=15, training=training, do_constant_folding=False)
        corpus.add("training", f"{what}, batch norms in training mode", LEGACY)
        net.eval()
    for opset in (23, 25):
        if corpus.wants(f"dynamo-opset{opset}"):
            dynamo(corpus, f"dynamo-opset{opset}", net, sample, {}, what, opset)
    if corpus.wants("dynamo-unoptimised"):
        dynamo(corpus, "dynamo-unoptimised", net, sample, {}, f"{what}, batch norms kept", 18, optimize=False)
    if corpus.wants("dynamo-open"):
        axes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
        shapes = {"x": [2, 3, 64, 64]}
        dynamo(corpus, "dynamo-open", net, torch.randn(2, 3, 64, 64), {"shapes": shapes}, f"{what}, open sizes", 18, dynamic_shapes=axes)
    if corpus.wants("dynamo-external"):
        path = corpus.path("dynamo-external")
        quiet(net, sample, path, dynamo=True, opset_version=18, external_data=True, verbose=False)
        corpus.add("dynamo-external", f"{what}, external data", DYNAMO)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        label = str(kind).removeprefix("torch.")
        if corpus.wants(f"torch-{label}"):
            cast = nets.fill(slim_resnet([2, 2, 2, 2]), "variants").to(kind)
            dynamo(corpus, f"torch-{label}", cast, sample.to(kind), {}, f"{what}, {label}{MIXED if kind is torch.bfloat16 else ''}", 18)
