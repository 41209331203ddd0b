"""The models: sizes given in the literature, an independent forward pass, and every option."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.models.vgg import cfgs as VGG_CHANNELS

from rnlib.models import BasicBlock, Normalize, PadShortcut, resnet, vgg
from rnlib.norms import RobustNorm
from rnlib.other_norms import NORMS


def images(n=2, channels=3, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def on_meta(build, *args, **options):
    """The model without its numbers, where only shapes count."""
    with torch.device("meta"):
        return build(*args, **options)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def weighted_layers(model):
    """Depth as the papers count it: without the 1x1 convolutions of shortcuts."""
    shortcuts = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" in name]
    return len(convolutions(model)) + sum(isinstance(m, nn.Linear) for m in model.modules()) - len(shortcuts)


@pytest.mark.parametrize(
    ("depth", "shortcut", "count"),
    [
        (20, "pad", 269_722),
        (38, "pad", 561_370),
        (50, "pad", 755_802),
        (20, "conv", 272_474),
        (38, "conv", 564_122),
        (50, "conv", 758_554),
    ],
)
def test_resnet_has_the_parameters_of_the_literature(depth, shortcut, count):
    assert parameters(on_meta(resnet, depth, shortcut=shortcut)) == count


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
@pytest.mark.parametrize("depth", [8, 14, 20, 32, 110])
def test_depth_of_a_resnet_counts_its_weighted_layers(depth, shortcut):
    assert weighted_layers(on_meta(resnet, depth, shortcut=shortcut)) == depth


@pytest.mark.parametrize(
    ("depth", "letter", "count"), [(11, "A", 8), (13, "B", 10), (16, "D", 13), (19, "E", 16)]
)
def test_vgg_has_the_convolutions_of_simonyan_and_zisserman(depth, letter, count):
    model = on_meta(vgg, depth)
    channels = [m.out_channels for m in convolutions(model)]
    assert len(channels) == count
    assert channels == [c for c in VGG_CHANNELS[letter] if c != "M"]
    assert weighted_layers(model) == depth
    spatial = [m for m in model if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    assert [getattr(m, "out_channels", "M") for m in spatial] == VGG_CHANNELS[letter]
    sizes = [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)]
    assert sizes == [(512, 512), (512, 512), (512, 10)]
    assert sum(isinstance(m, nn.Dropout) for m in model) == 2


@pytest.mark.parametrize("width", [4, 16])
def test_width_scales_every_stage(width):
    stages = {m.out_channels for m in convolutions(on_meta(resnet, 14, width=width))}
    assert stages == {width, 2 * width, 4 * width}
    stages = {m.out_channels for m in convolutions(on_meta(vgg, 11, width=width))}
    assert stages == {width, 2 * width, 4 * width, 8 * width}


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
@pytest.mark.parametrize(("build", "depth"), [(resnet, 8), (vgg, 11), (vgg, 19)])
def test_every_kind_of_image_and_number_of_classes(build, depth, channels, size, num_classes):
    model = build(depth, num_classes=num_classes, in_channels=channels, width=4)
    assert model(images(2, channels, size)).shape == (2, num_classes)


@pytest.mark.parametrize(
    ("build", "norm"), list(itertools.product([lambda **o: resnet(8, **o), lambda **o: vgg(11, **o)], NORMS))
)
def test_every_norm_stands_in_every_model_and_every_parameter_learns(build, norm):
    torch.manual_seed(0)
    model = build(norm=norm, width=8)
    F.cross_entropy(model(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    norms = {type(m) for m in model.modules()} & {type(NORMS[norm](8))}
    assert norms == {type(NORMS[norm](8))}


def test_options_reach_every_norm_and_a_function_may_make_them():
    model = on_meta(resnet, 8, "robust_norm", p=0.4, width=4)
    assert [m.p for m in model.modules() if isinstance(m, RobustNorm)] == [0.4] * 9
    model = on_meta(vgg, 11, lambda channels: nn.GroupNorm(1, channels), width=4)
    assert sum(isinstance(m, nn.GroupNorm) for m in model) == 8


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_resnet_against_a_forward_pass_written_out(shortcut):
    torch.manual_seed(0)
    model, x = resnet(14, "no_norm", width=4, shortcut=shortcut), images(size=9)
    names = dict(model.named_parameters())
    main = [p for name, p in names.items() if p.dim() == 4 and "shortcut" not in name]
    side = [p for name, p in names.items() if "shortcut" in name]
    h = F.relu(F.conv2d(x, main[0], padding=1))
    for block in range(6):
        stride = 2 if block in (2, 4) else 1
        inner = F.relu(F.conv2d(h, main[1 + 2 * block], stride=stride, padding=1))
        inner = F.conv2d(inner, main[2 + 2 * block], padding=1)
        if stride == 2 and shortcut == "conv":
            h = F.conv2d(h, side.pop(0), stride=2)
        elif stride == 2:
            h = torch.cat([h[:, :, ::2, ::2], torch.zeros_like(h[:, :, ::2, ::2])], 1)
        h = F.relu(inner + h)
    wanted = F.linear(h.mean((2, 3)), model[-1].weight, model[-1].bias)
    torch.testing.assert_close(model(x), wanted)


class StridedPointwise(TorchFunctionMode):
    """Notes the input channels of every 1x1 convolution with a stride."""

    def __init__(self):
        super().__init__()
        self.channels = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d and args[1].shape[-1] == 1 and args[3:4] not in ((), ((1, 1),)):
            self.channels.append(args[1].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_no_strided_pointwise_convolution_of_few_channels(width):
    """oneDNN's gradient of its weights spoils the heap on a CPU with AVX2: uxlfoundation/oneDNN 6035."""
    with StridedPointwise() as seen:
        resnet(8, width=width)(images())
    assert seen.channels == [channels for channels in (width, 2 * width) if channels >= 8]


def test_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    x = images(1, 2, 5)
    y = PadShortcut(2, 3)(x)
    assert y.shape == (1, 5, 3, 3)
    assert torch.equal(y[:, :2], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert not y[:, 2:].any()


@pytest.mark.parametrize("build", [lambda **o: resnet(8, **o), lambda **o: vgg(11, **o)])
def test_normalisation_of_the_input_is_inside(build):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    inside, outside = (build(width=4, **options).eval() for options in ({"mean": mean, "std": std}, {}))
    assert isinstance(inside[0], Normalize)
    outside.load_state_dict({**inside.state_dict(), "0.mean": outside[0].mean, "0.std": outside[0].std})
    x = images()
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(inside(x), outside(by_hand))
    torch.testing.assert_close(outside[0](x), x, rtol=0, atol=0)


def test_initial_weights_are_those_of_the_released_code():
    torch.manual_seed(0)
    for layer in convolutions(nn.ModuleList([resnet(8, width=32), vgg(11, width=16)])):
        assert layer.weight.std().item() == pytest.approx(
            math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels)), rel=0.15
        )
        assert layer.bias is None or not layer.bias.any()


class Single(BasicBlock):
    """One 3x3 convolution to twice the channels."""

    depth, expansion = 1, 2

    def layers(self, inputs, planes, stride, norm):
        return [nn.Conv2d(inputs, 2 * planes, 3, stride, 1, bias=False), norm(2 * planes)]


def test_a_resnet_may_be_made_of_other_blocks():
    model = resnet(11, block=Single, width=4)
    assert weighted_layers(model) == 11
    assert model[-1].in_features == 32
    assert model(images()).shape == (2, 10)
    with pytest.raises(ValueError, match=r"depth is 12, it must be 3n \+ 2: 5, 8, 11"):
        resnet(12, block=Single)


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 18, 21])
def test_a_resnet_of_another_depth_is_an_error(depth):
    with pytest.raises(ValueError, match=rf"depth is {depth}, it must be 6n \+ 2: 8, 14, 20"):
        resnet(depth)


@pytest.mark.parametrize("depth", [0, 12, 50])
def test_a_vgg_of_another_depth_is_an_error(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}, it must be one of 11, 13, 16, 19"):
        vgg(depth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortcut": "none"}, "shortcut is 'none'.*'conv'.*'pad'"),
        ({"norm": "batchnorm"}, "'batchnorm', known are"),
        ({"num_clases": 5}, "batch_norm does not take these options: {'num_clases': 5}"),
        ({"norm": nn.BatchNorm2d, "p": 0.3}, "options {'p': 0.3} are for a norm given by name"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"width": 0}, "width is 0"),
        ({"mean": (0.5,)}, "mean has 1 values for 3 input channels"),
        ({"mean": (0.5,) * 3, "std": (1.0,)}, "must be of equal length"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
    ],
)
def test_wrong_options_are_found_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        resnet(8, **options)


def test_images_of_another_shape_are_an_error():
    for x in (images(channels=1), images()[0]):
        with pytest.raises(ValueError, match=r"images have shape .*, expected \(N, 3, H, W\)"):
            resnet(8, width=4)(x)
