"""How fast the product trains on the card by --compile on.

Compiling takes minutes of each network, so this section runs only when it is asked for.
"""

from tests.gpu.record import Record
from tests.gpu.training import cifar, row, sid_speed


def run(record: Record) -> None:
    """Fill the table; the network that takes longest to compile comes last."""
    compiling = "off" if record.toy else "on"
    row(record, "fashion", sid_speed(record, "fashion", 128, "bfloat16", compiling=compiling))
    row(record, "64x64", sid_speed(record, "64x64", 256, "bfloat16", compiling=compiling))
    cifar(record, compiling)
