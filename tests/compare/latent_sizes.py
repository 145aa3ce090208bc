"""What an image of 512x512 pixels costs on processors: of the network, of decoders, in memory.

    .venv/bin/python -m tests.compare.latent_sizes

EDM2's smallest network (xs) and the decoder of Stable Diffusion's autoencoder, in the released
sizes with random weights, as the graphs that a bundle would hold: the network alone, with that
decoder, and with the light decoder that 'sid-distill decoder' would make of it. Each engine
computes each graph in a process of its own, one image at a time in as many threads as there are
processors, in turn. --size tiny says nothing and is over in seconds: to try this program.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from service.resources import available_cpus
from tests.compare import engine_openers

XS = {
    "architecture": "edm2", "img_resolution": 64, "img_channels": 4, "label_dim": 1000,
    "model_channels": 128, "channel_mult": [1, 2, 3, 4], "num_blocks": 3,
    "attn_resolutions": [16, 8], "logvar_channels": 0,
}  # fmt: skip
TINY = XS | {
    "img_resolution": 8, "label_dim": 2, "model_channels": 8, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8,
}  # fmt: skip
SIZES = {  # the network, and what of the decoder is not as in the released one
    "xs": (XS, {}),
    "tiny": (TINY, {"widths": (8, 16, 16, 16), "blocks": 1, "groups": 4}),
}
ENGINES = {
    "ONNX Runtime": engine_openers.ort,
    "OpenVINO": engine_openers.openvino,
    "OpenVINO, bfloat16": lambda path: engine_openers.openvino(path, "bf16"),
}


def main() -> None:
    """Export, have processes measure in turn, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="xs")
    parser.add_argument("--rounds", type=int, default=2, help="each a process of every row")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--draw", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.draw:
        print(json.dumps(draw(*given.draw)))
        return
    with tempfile.TemporaryDirectory() as folder:
        graphs = export(given.size, Path(folder))
        rows = {(engine, name): [] for engine in given.engines for name in graphs}
        for _ in range(given.rounds):
            for engine, name in rows:
                command = [sys.executable, "-m", "tests.compare.latent_sizes", "--draw", engine]
                command += [str(graphs[name]), str(SIZES[given.size][0]["img_resolution"])]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                rows[engine, name].append(json.loads(done.stdout))
        megabytes = {name: graph.stat().st_size / 1e6 for name, graph in graphs.items()}
    print(f"{available_cpus()} threads\n\n| engine | graph | MB | ms an image | GiB at the peak |")
    print("|---|---|---|---|---|")
    for (engine, name), measured in rows.items():
        seconds, peak = (statistics.median(one[i] for one in measured) for i in (0, 1))
        print(f"| {engine} | {name} | {megabytes[name]:.0f} | {1000 * seconds:.4g} "
              f"| {peak / 2**20:.2f} |")  # fmt: skip


def export(size: str, folder: Path) -> dict[str, Path]:
    """Write the graphs, of random weights, in the form for processors."""
    import torch  # not above: it would count in the memory of those that draw

    from distill.export.onnx import export_onnx
    from distill.networks import Denoiser, read_config
    from distill.networks.autoencoder import EDM2_SCALE, AutoencoderLayout, Decoder
    from distill.networks.latent_space import LatentDecoder, LatentSpace
    from distill.networks.light_decoder import LightDecoder, LightDecoderLayout, usual_blocks

    config, layout = SIZES[size][0], AutoencoderLayout(**SIZES[size][1])
    torch.manual_seed(0)
    network, decoder = Denoiser(read_config(config)).eval(), Decoder(layout).eval()
    space = LatentSpace(autoencoder="random", scale=EDM2_SCALE.scale, bias=EDM2_SCALE.bias)
    width = max(8, layout.widths[0] // 16 * 8)  # as the command chooses it
    light = LightDecoder(LightDecoderLayout(width=width, blocks=usual_blocks(layout.factor))).eval()
    behind = {
        "network": None,
        "network and decoder": LatentDecoder(decoder, space),
        "network and light decoder": LatentDecoder(light, space),
    }
    graphs = {}
    for number, (name, last) in enumerate(behind.items()):
        graphs[name] = folder / f"{number}.onnx"
        export_onnx(network, 2.5, graphs[name], cpu=True, decoder=last)
    return graphs


def draw(engine: str, graph: str, side: str) -> tuple[float, int]:
    """Seconds of an image, the median of three, and the process's largest size in KiB."""
    engine_openers.THREADS = available_cpus()
    random = np.random.default_rng(0)
    latents = random.normal(size=(1, 4, int(side), int(side))).astype(np.float32)
    feed = {"latents": latents, "class_labels": np.zeros(1, np.int64)}
    once = ENGINES[engine](graph)
    once(feed)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        once(feed)
        seconds.append(time.perf_counter() - began)
    # Not getrusage's: that counts what the process was before it became this program.
    status = Path("/proc/self/status").read_text()
    return statistics.median(seconds), int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
