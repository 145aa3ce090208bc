"""The forms in which a network computes: where its maps lie in memory, eager or compiled.

A form changes no weight, no name of one and no random draw but dropout's between the two layouts,
so that a run may be resumed in another. Which one is fastest depends on network, batch, precision
and card: `distill.training.form_choice` measures.
"""

from typing import Literal

import torch

from distill.networks import Denoiser
from distill.networks.block import UNetBlock
from distill.networks.layers import GroupNorm

# nchw and channels_last: eager, in that layout. compiled: channels_last, and torch.compile joins
# what stands between the convolutions to few kernels.
NetworkForm = Literal["nchw", "channels_last", "compiled"]

# Every kind of block is compiled for each way in which a training uses it: shapes, train or eval
# mode, with gradients or without. torch counts them for all blocks together, for they share the
# code of nn.Module.__call__, and allows 8. ImageNet-64's network has about 40 kinds, SiD 4 ways and
# 6 more in four steps.
COMPILATIONS = 1024


def lay_out(network: Denoiser, form: NetworkForm, device: torch.device) -> None:
    """Put a network into the layout of a form, in place: weights, images and maps.

    Args:
        network: any; its copies keep the layout.
        form: which.
        device: where it is going to compute. On a CPU torch's own normalisation keeps the layout.
    """
    layout = torch.contiguous_format if form == "nchw" else torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]
    network.memory_format = layout
    if device.type != "cuda":
        return
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.keeps_layout = form != "nchw"
        elif isinstance(module, UNetBlock):
            module.memory_format = layout


def compile_blocks(*networks: Denoiser) -> None:
    """Compile networks block by block, in place: at first use, for each shape and mode.

    Blocks that are alike share what was compiled, so that a start takes seconds for each kind of
    block rather than minutes for each network. Parameter names stay as they are. A copy of a
    network is not compiled, so this comes after the copies. A block that cannot be compiled, or
    one compilation too many, is an error and never computed eagerly in silence.
    """
    # Here, for the two take seconds to import, and who compiles nothing need not wait for them.
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = COMPILATIONS
    # Dropout then draws what it draws in eager mode; and from the generator that a CUDA graph
    # registers, where a seed drawn beside the graph would be frozen in it.
    inductor.fallback_random = True
    # On CUDA this fusion, which came to torch in 2026, makes nearest upsampling, convolution,
    # GroupNorm and SiLU in a row 6 times slower (pytorch#189488): so do our blocks on the way up.
    if hasattr(inductor, "loop_reindexing_after_fusion"):
        inductor.loop_reindexing_after_fusion = False
    for network in networks:
        for block in network.model.blocks():
            block.compile(fullgraph=True, dynamic=False)  # a training never changes the shapes
