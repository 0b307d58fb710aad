"""Start the autoencoder as an 8x8 mean followed by nearest upsampling; the start decides how far short training gets.

With diffusers' default weights an autoencoder of this size stalls on gray for the first thousands of steps. Here each
residual branch starts near zero, so brightness travels on the skips in channels laid out as (+c, -c, +1, -1): a
GroupNorm over such a group keeps c up to a nearly constant factor, and silu(x) - silu(-x) = x passes the nonlinearity.
"""

import torch
from diffusers import AutoencoderKL
from torch import nn

BRANCH_SCALE = 0.1  # the share of its default that a residual branch starts with
CONSTANT = 2.0  # the level of the constant channels: above the signal, so that a group's deviation hardly varies
LOG_VARIANCE = -6.4  # the logarithm of train_vae.NOISE squared


def _identity_(conv: nn.Conv2d, kernel: torch.Tensor, *, noise: float) -> None:
    """Make a convolution pass channel i to i through one kernel, with `noise` of its default weights beside it."""
    assert conv.bias is not None
    conv.weight.mul_(noise)
    conv.bias.zero_()
    for channel in range(min(conv.in_channels, conv.out_channels)):
        conv.weight[channel].zero_()
        conv.weight[channel, channel] = kernel


def _scatter_(conv: nn.Conv2d, *, channels: int, groups: int) -> None:
    """Make the first convolution lay colours out as (+c, -c, +1, -1), one group of the coming norm for each colour."""
    assert conv.bias is not None
    conv.weight.mul_(0.5)
    stride = channels // groups
    for group in range(groups):
        base = group * stride
        conv.weight[base : base + 4].zero_()
        if group < channels:
            source = min(group, conv.in_channels - 1)
            conv.weight[base, source, 1, 1], conv.weight[base + 1, source, 1, 1] = 1.0, -1.0
        conv.bias[base : base + 4] = torch.tensor([0.0, 0.0, CONSTANT, -CONSTANT])


def _gather_(conv: nn.Conv2d, *, layout: list[int], deviation: float) -> None:
    """Make the last convolution read c back as silu(c) - silu(-c), undoing the norm's division."""
    assert conv.bias is not None
    conv.weight[: len(layout)].zero_()
    conv.bias.zero_()
    for channel, base in enumerate(layout):
        conv.weight[channel, base, 1, 1], conv.weight[channel, base + 1, 1, 1] = deviation, -deviation


def _mean_kernel() -> torch.Tensor:
    # diffusers pads a downsampler by one pixel on the right and below only, so the first 2x2 of the kernel is the block
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 0.25
    return kernel


def _centre_kernel() -> torch.Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1.0
    return kernel


def _soften_branches_(vae: AutoencoderKL) -> None:
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and name.endswith(".conv2"):
            module.weight.mul_(BRANCH_SCALE)
        if isinstance(module, nn.Linear) and name.endswith("to_out.0"):
            module.weight.mul_(BRANCH_SCALE)
        if isinstance(module, nn.Conv2d) and name.endswith("conv_shortcut"):
            _identity_(module, torch.ones(1, 1), noise=0.5)
        if isinstance(module, nn.Conv2d) and "downsamplers" in name:
            _identity_(module, _mean_kernel(), noise=0.5)
        if isinstance(module, nn.Conv2d) and "upsamplers" in name:
            _identity_(module, _centre_kernel(), noise=0.5)


@torch.no_grad()
def initialise_(vae: AutoencoderKL) -> None:
    """Overwrite an autoencoder's weights with the mean-and-upsample start described above."""
    groups: int = vae.config["norm_num_groups"]
    widths: list[int] = list(vae.config["block_out_channels"])
    _soften_branches_(vae)
    stride = widths[0] // groups  # skips pass channel i to i, so the layout of the narrowest level holds everywhere
    layout = [group * stride for group in range(3)]
    for part, width in ((vae.encoder, widths[-1]), (vae.decoder, widths[0])):
        _scatter_(part.conv_in, channels=widths[0], groups=groups)
        group_width = width // groups
        members = max(group_width // stride, 1)
        deviation = (members * (2 * CONSTANT**2 + 0.5) / group_width) ** 0.5
        _gather_(part.conv_out, layout=layout, deviation=deviation)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _identity_(conv, torch.ones(1, 1), noise=0.0)
    vae.encoder.conv_out.weight[4:].zero_()
    vae.encoder.conv_out.bias[4:] = LOG_VARIANCE
