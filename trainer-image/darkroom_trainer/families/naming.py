"""Where a single file keeps each weight of diffusers' models: one table, read when loading and when writing.

Files follow CompVis' latent-diffusion (UNet, VAE), transformers (CLIP ViT-L) and OpenCLIP (ViT-H of SD 2.x, bigG of
SDXL). Names are derived from the model's own, so any width, and the topologies of all families, are served. Tests hold
them against diffusers' importers. Neighbours: `loading` reads with them, `lora_names` names layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

_UNET_HEAD: Final = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_BLOCK: Final = re.compile(
    r"(?P<way>down|up)_blocks\.(?P<block>\d+)\.(?P<what>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)"
)
_VAE_BLOCK: Final = re.compile(
    r"(?P<part>encoder|decoder)\.(?:down|up)_blocks\.(?P<level>\d+)"
    r"\.(?P<what>resnets|downsamplers|upsamplers)\.(?P<index>\d+)"
)
_VAE_RULES: Final = (
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
    ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
    ("mid_block.attentions.0.to_k", "mid.attn_1.k"),
    ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
)
_OPEN_CLIP_RULES: Final = (
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("encoder.layers.", "transformer.resblocks."),
    ("final_layer_norm.", "ln_final."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)
_STACKED: Final = re.compile(r"(?P<layer>.*\.self_attn)\.(?P<which>[qkv])_proj\.(?P<kind>weight|bias)")
_PROJECTION: Final = "text_projection.weight"


@dataclass(frozen=True)
class Link:
    """A tensor of a file and the weights of one part of the model that it holds."""

    key: str
    """The tensor's name in the file."""
    names: tuple[str, ...]
    """The weights' names in their part; several lie one below the other in the tensor, along its first axis."""
    transposed: bool = False

    def unpack(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Cut the file's tensor into the model's weights, which may differ from these in axes of length 1."""
        if self.transposed:
            tensor = tensor.T
        return list(tensor.chunk(len(self.names))) if len(self.names) > 1 else [tensor]

    def pack(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put the model's weights together as the file keeps them, apart from axes of length 1."""
        tensor = torch.cat(list(weights)) if len(weights) > 1 else weights[0]
        return tensor.T.contiguous() if self.transposed else tensor


def unet_links(names: Iterable[str], prefix: str, *, layers_per_block: int) -> list[Link]:
    """Return where a file keeps the weights of a UNet.

    Args:
        names: The weights' names in diffusers.
        prefix: What the file puts before its own.
        layers_per_block: Resnets of a block on the way down; a block on the way up has one more.
    """
    names = list(names)
    attending = attending_up_blocks(names)
    return [
        Link(prefix + unet_key(name, layers_per_block=layers_per_block, attending=attending), (name,)) for name in names
    ]


def attending_up_blocks(names: Iterable[str]) -> frozenset[int]:
    """Return which of a UNet's blocks on the way up hold attention: the upsampler comes third there, not second."""
    matches = [match for name in names if (match := _UNET_BLOCK.match(name))]
    return frozenset(int(match["block"]) for match in matches if match["way"] == "up" and match["what"] == "attentions")


def unet_key(name: str, *, layers_per_block: int, attending: frozenset[int]) -> str:
    """Return latent-diffusion's name of a UNet's weight or module.

    Raises:
        ValueError: No UNet of diffusers has such a name.
    """
    for head, key in _UNET_HEAD.items():
        if f"{name}.".startswith(f"{head}."):
            rest = name.removeprefix(head)
            return key + (_rename(rest, _UNET_RESNET) if ".resnets." in head else rest)
    match = _UNET_BLOCK.match(name)
    if match is None:
        raise ValueError(f"{name} is no name in a UNet of diffusers")
    block, index, rest = int(match["block"]), int(match["index"]), name[match.end() :]
    first = block * (layers_per_block + 1)
    match match["way"], match["what"]:
        case "down", "downsamplers":
            return f"input_blocks.{first + layers_per_block + 1}.0{rest.replace('.conv', '.op')}"
        case "up", "upsamplers":
            return f"output_blocks.{first + layers_per_block}.{2 if block in attending else 1}{rest}"
        case way, "attentions":
            return f"{_block(way, first + index)}.1{rest}"
        case way, _:
            return f"{_block(way, first + index)}.0{_rename(rest, _UNET_RESNET)}"


def _block(way: str, number: int) -> str:
    return f"input_blocks.{number + 1}" if way == "down" else f"output_blocks.{number}"


def _rename(rest: str, names: Mapping[str, str]) -> str:
    """Rename the first of dotted names, which begin with a dot."""
    first, dot, tail = rest.removeprefix(".").partition(".")
    return f".{names.get(first, first)}{dot}{tail}"


def vae_links(names: Iterable[str], prefix: str, *, num_levels: int) -> list[Link]:
    """Return where a file keeps the weights of an autoencoder; arguments as for `unet_links`."""
    return [Link(prefix + _vae_key(name, num_levels), (name,)) for name in names]


def _vae_key(name: str, num_levels: int) -> str:
    for ours, theirs in _VAE_RULES:
        name = name.replace(ours, theirs)
    match = _VAE_BLOCK.match(name)
    if match is None:
        return name
    level, rest = int(match["level"]), name[match.end() :]
    place = f"encoder.down.{level}" if match["part"] == "encoder" else f"decoder.up.{num_levels - 1 - level}"
    what = {
        "resnets": f"block.{match['index']}",
        "downsamplers": "downsample",
        "upsamplers": "upsample",
    }[match["what"]]
    return f"{place}.{what}{rest}"


def clip_links(names: Iterable[str], prefix: str) -> list[Link]:
    """Return where a file keeps the weights of CLIP ViT-L: under transformers' names of before its release 5.6."""
    return [Link(f"{prefix}text_model.{name.removeprefix('text_model.')}", (name,)) for name in names]


def open_clip_links(names: Iterable[str], prefix: str) -> list[Link]:
    """Return where a file keeps the weights of an OpenCLIP text encoder: query, key and value in one tensor."""
    links = []
    for name in names:
        if name == _PROJECTION:
            links.append(Link(f"{prefix}text_projection", (name,), transposed=True))
        elif match := _STACKED.fullmatch(name):
            if match["which"] == "q":
                stack = tuple(f"{match['layer']}.{which}_proj.{match['kind']}" for which in "qkv")
                layer = _open_clip_key(match["layer"]).replace(".self_attn", ".attn")
                links.append(Link(f"{prefix}{layer}.in_proj_{match['kind']}", stack))
        else:
            links.append(Link(prefix + _open_clip_key(name), (name,)))
    return links


def _open_clip_key(name: str) -> str:
    name = name.removeprefix("text_model.")
    for ours, theirs in _OPEN_CLIP_RULES:
        name = name.replace(ours, theirs)
    return name
