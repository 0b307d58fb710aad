"""What a file's metadata says of its network: as kohya's sd-scripts and LyCORIS tell it, every argument as text.

Readers do not need it, since names and shapes tell all; people and trainers that go on from a file read it.
"""

from __future__ import annotations

import json
from functools import singledispatch
from typing import Final

from darkroom_api.networks import DoRA, LoHa, LoKr, LoRA, Network, Targets

_LYCORIS: Final = "lycoris.kohya"


def about_network(network: Network) -> dict[str, object]:
    """Return the metadata of a network."""
    module, arguments = implementation(network)
    if network.conv_rank is not None:
        arguments |= {"conv_dim": str(network.conv_rank), "conv_alpha": str(network.conv_alpha)}
    elif module == _LYCORIS and network.targets == Targets():
        arguments["preset"] = "attn-mlp"  # its own default takes convolutions too
    return {
        "ss_network_module": module,
        "ss_network_dim": network.rank,
        "ss_network_alpha": network.alpha,
        "ss_network_args": json.dumps(arguments),
    }


@singledispatch
def implementation(network: object) -> tuple[str, dict[str, str]]:
    """Return the module of kohya's world that trains such a network, and the arguments that make it do so."""
    raise NotImplementedError(f"no metadata for {type(network).__name__}")


@implementation.register
def _(network: LoRA) -> tuple[str, dict[str, str]]:
    return "networks.lora", {}


@implementation.register
def _(network: DoRA) -> tuple[str, dict[str, str]]:
    return _LYCORIS, {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}


@implementation.register
def _(network: LoHa) -> tuple[str, dict[str, str]]:
    return _LYCORIS, {"algo": "loha"}


@implementation.register
def _(network: LoKr) -> tuple[str, dict[str, str]]:
    arguments = {"algo": "lokr", "factor": str(network.factor or -1)}
    chosen = {"decompose_both": network.decompose_both, "full_matrix": network.full_matrix}
    return _LYCORIS, arguments | {name: "True" for name, is_chosen in chosen.items() if is_chosen}
