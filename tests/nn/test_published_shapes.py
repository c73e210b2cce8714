"""Parameter counts, closed forms and the published details of each architecture, and the known errors of their code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn as torch_nn

from confide import nn
from confide.errors import InputError


def count(model: torch_nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_smoothnet_w80d50_is_the_published_one():
    model = nn.smoothnet((3, 32, 32), 10)
    assert count(model) == 3_391_853
    assert round(count(nn.smoothnet((3, 32, 32), 10, depth=8)), -5) == 8_200_000  # W80D80: 8.2 M
    first, second = (m for m in model if isinstance(m, nn.SmoothStack))
    assert (first.out, second.out) == (323, 801)
    transition = model[list(model).index(first) + 1]
    assert (transition.in_channels, transition.out_channels, transition.bias) == (323, 161, None)
    block = second.blocks[4]
    assert [type(m).__name__ for m in block] == ["Conv2d", "MaxPool2d", "GroupNorm", "SELU"]
    assert block[1].stride == 1 and block[2].num_groups == 8 and block[0].bias is None
    for module in model.modules():  # Xavier uniform with the gain of SELU
        if isinstance(module, torch_nn.Conv2d | torch_nn.Linear):
            fan = module.weight[0].numel() + module.weight.shape[0] * module.weight[0, 0].numel()
            bound = 0.75 * math.sqrt(6 / fan)
            assert float(module.weight.detach().abs().max()) <= bound * (1 + 1e-6)
            assert float(module.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_smoothnet_takes_any_number_of_channels_and_classes_and_any_size():
    """The released code adds a fixed 3 to the transition's channels and has ten classes in its last layer."""
    three, one = nn.smoothnet((3, 32, 32), 10), nn.smoothnet((1, 32, 32), 4)
    assert one(torch.zeros(1, 1, 32, 32)).shape == (1, 4)
    stage = 64 * 9 * 5 * 2  # 5 blocks see 2 channels less
    squeeze = 323 * 161 - 321 * 160  # the transition in and out
    rest = 128 * 9 * 5 * 1  # 5 blocks behind it see 1 channel less
    assert count(three) - count(one) == stage + squeeze + rest + (10 - 4) * 129
    small = nn.smoothnet((3, 32, 32), 2, width=1, depth=1)
    assert small(torch.zeros(1, 3, 32, 32)).shape == small(torch.zeros(1, 3, 224, 224)).shape == (1, 2)


def test_smoothnet_hands_on_the_last_block_only():
    model = nn.smoothnet((1, 16, 16), 2, width=1, depth=3)
    second = [m for m in model if isinstance(m, nn.SmoothStack)][1]
    seen = {}
    second.blocks[-1].register_forward_hook(lambda m, i, o: seen.update(last=o))
    after = list(model)[list(model).index(second) + 1]
    after.register_forward_hook(lambda m, i, o: seen.update(kept=o))
    model(torch.randn(2, 1, 16, 16))
    assert torch.equal(seen["last"], seen["kept"])


def test_resnet9_with_and_without_scale_normalisation():
    plain, scaled = nn.resnet9((3, 32, 32), 10, scale_norm=False), nn.resnet9((3, 32, 32), 10)
    assert (count(plain), count(scaled)) == (2_447_946, 2_448_714)
    norms = [m for m in scaled.modules() if isinstance(m, nn.ScaleNorm)]
    sums = [m for m in scaled.modules() if isinstance(m, nn.Residual)]
    assert len(norms) == len(sums) == 2 and [n.num_channels for n in norms] == [128, 256]
    for block in sums:  # a layer of its own, after the sum, not the branch's normalisation once more
        own = {id(p) for p in block.norm.parameters()}
        assert not own & {id(p) for p in block.branch.parameters()}
        x = torch.randn(2, block.norm.num_channels, 8, 8)
        assert torch.equal(block(x), block.norm(x + block.branch(x)))
    assert (
        count(nn.resnet9((3, 32, 32), 10, weights="standardised", scale_norm=False)) == 2_447_946 + 1472
    )  # a gain for each filter
    assert count(nn.resnet9((3, 32, 32), 10, weights="centred", scale_norm=False)) == 2_447_946


def test_scale_norm_brings_any_sum_to_one_scale():
    norm = nn.ScaleNorm(8, 4)
    x, branch = torch.randn(3, 8, 6, 6), 1000 * torch.randn(3, 8, 6, 6)
    groups = norm(x + branch).reshape(3, 4, -1)
    assert torch.allclose(groups.mean(2), torch.zeros(3, 4), atol=1e-5)
    assert torch.allclose(groups.var(2, unbiased=False), torch.ones(3, 4), atol=1e-3)
    assert nn.ScaleNorm(8).num_groups == 8, "never more groups than channels"


def wide(depth: int, width: int, channels: int = 3, classes: int = 10) -> int:
    """A convolution has weights, biases and gains; a normalisation two numbers for each channel."""

    def conv(a: int, b: int, k: int) -> int:
        return a * b * k * k + 2 * b

    total, before = conv(channels, 16, 3), 16
    for stage in range(3):
        out = 16 * 2**stage * width
        total += 2 * before + conv(before, out, 1)
        for _ in range((depth - 4) // 6):
            total += 2 * before + conv(before, out, 3) + 2 * out + conv(out, out, 3)
            before = out
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 4), (28, 2), (40, 4)])
def test_wide_nets_have_the_closed_form(depth, width):
    model = nn.wideresnet((3, 32, 32), 10, depth=depth, width=width)
    assert count(model) == wide(depth, width)
    blocks = [m for m in model.modules() if isinstance(m, nn.WideBlock)]
    assert len(blocks) == 3 * (depth - 4) // 6
    for block in blocks:
        kinds = [type(m).__name__ for m in block.branch]
        assert kinds == ["ReLU", "GroupNorm", "WSConv2d"] * 2, "activation, norm, convolution"
        assert isinstance(block.shortcut, torch_nn.Identity) or [type(m).__name__ for m in block.shortcut] == kinds[:3]
    scaled = nn.wideresnet((3, 32, 32), 10, depth=depth, width=width, scale_norm=True)
    assert sum(isinstance(m, nn.ScaleNorm) for m in scaled.modules()) == len(blocks), "one for each residual sum"


def test_wide_net_of_the_recipe():
    assert count(nn.wideresnet((3, 32, 32), 10)) == 2_753_818
    convs = [m for m in nn.wideresnet((3, 32, 32), 10).modules() if isinstance(m, nn.WSConv2d)]
    assert [c.stride for c in convs if c.kernel_size == (1, 1)] == [(1, 1), (2, 2), (2, 2)]


@pytest.mark.parametrize("dims", [2, 3])
def test_monet_has_the_released_weights_and_no_running_statistics(dims):
    model = nn.monet((1, *[8] * dims), 1)
    convs = (torch_nn.Conv2d, torch_nn.ConvTranspose2d, torch_nn.Conv3d, torch_nn.ConvTranspose3d)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, convs))
    norms = sum(m.num_channels for m in model.modules() if isinstance(m, torch_nn.GroupNorm))
    assert norms == 944
    if dims == 2:
        assert weights == 399_776
        assert weights + 4 * (norms + 1) == 403_556  # the released code: four numbers a channel, one more in the head
        assert count(model) == weights + 2 * norms + 1 == 401_665
    block = next(m for m in model.modules() if isinstance(m, nn.RepeatBlock))
    assert [unit[0].dilation[0] for unit in block.units] == [4, 3, 2, 1]


def test_monet_may_see_foreground_anywhere_and_nowhere():
    """A normalised single-channel head would give every image the same mean logit."""
    model = nn.monet((1, 16, 16), 1, width=4, groups=2)
    images = torch.stack([torch.zeros(1, 16, 16), torch.randn(1, 16, 16), 9 * torch.ones(1, 16, 16)])
    means = model(images).detach().mean((1, 2, 3))
    assert float(means.std()) > 1e-3


@pytest.mark.parametrize("dims", [2, 3])
def test_unet_has_the_closed_form(dims):
    width, levels, classes = 4, 2, 3
    sizes, k = [4, 8, 16], 3**dims

    def double(a: int, b: int) -> int:
        return a * b * k + b * b * k + 4 * b

    total = double(1, 4) + double(4, 8) + double(8, 16)
    total += sum(a * b * 2**dims + b + double(2 * b, b) for a, b in ((sizes[2], sizes[1]), (sizes[1], sizes[0])))
    total += width * classes + classes
    model = nn.unet((1, *[8] * dims), classes, width=width, levels=levels, groups=2)
    assert count(model) == total
    assert model(torch.zeros(2, 1, *[12] * dims)).shape == (2, classes, *[12] * dims), "other sizes fit too"


def test_vit_has_the_closed_form_and_fixed_positions():
    w, patch, depth, ratio, classes = 64, 4, 4, 2, 10
    layer = 4 * w * w + 4 * w + 2 * ratio * w * w + ratio * w + w + 4 * w
    model = nn.vit((3, 32, 32), classes)
    assert count(model) == 3 * patch**2 * w + w + depth * layer + 2 * w + w * classes + classes
    grid = nn.positions(3, 5, 8)
    assert grid.shape == (15, 8) and torch.unique(grid, dim=0).shape[0] == 15
    assert torch.allclose(grid.square().sum(1), torch.full((15,), 4.0))  # sin^2 + cos^2 for each frequency


def test_dice_is_one_value_for_each_entry_and_knows_empty_masks():
    full, empty = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    sure = torch.stack([100 * full, -100 * full, -100 * full, 100 * full])
    loss = nn.soft_dice(sure, torch.stack([full, empty, full, empty]), smooth=1.0)
    assert torch.allclose(loss, torch.tensor([0.0, 0.0, 16 / 17, 16 / 17]), atol=1e-6)
    half = nn.soft_dice(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), smooth=0.0)
    assert float(half) == pytest.approx(1 - 2 * 8 / (8 + 16))
    classes = torch.randint(0, 3, (2, 4, 4))
    sure = 100.0 * torch.nn.functional.one_hot(classes, 3).movedim(-1, 1)
    assert torch.allclose(nn.soft_dice(sure, classes), torch.zeros(2), atol=1e-5)
    with pytest.raises(ValueError, match="one value for each pixel"):
        nn.soft_dice(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 3, 3))


def test_orders_of_activation_and_norm_in_a_wide_residual_net():
    """Sander et al. keep De et al.'s order in the branch and turn it round in the projecting shortcuts alone."""
    kinds = {}
    for order in ("activation-norm", "norm-activation", "shortcut-norm-activation"):
        net = nn.build("wideresnet", (3, 8, 8), 10, depth=10, width=1, order=order)
        blocks = [m for m in net.modules() if isinstance(m, nn.WideBlock)]
        kinds[order] = tuple(
            type(part).__name__
            for block in blocks[:1]
            for part in (*block.branch[:2], *block.shortcut[:2], *net[-5:-3])
        )
        assert sum(p.numel() for p in net.parameters()) == sum(
            p.numel() for p in nn.build("wideresnet", (3, 8, 8), 10, depth=10, width=1).parameters()
        )
    act, norm = ("ReLU", "GroupNorm"), ("GroupNorm", "ReLU")
    assert kinds == {
        "activation-norm": (*act, *act, *act),
        "norm-activation": (*norm, *norm, *norm),
        "shortcut-norm-activation": (*act, *norm, *act),
    }
    with pytest.raises(InputError, match="did you mean 'norm-activation'"):
        nn.build("wideresnet", (3, 8, 8), 10, order="norm-activations")
