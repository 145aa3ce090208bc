"""How fast the product trains on the card as --compile auto has it, which is the default.

It chooses among the eager forms and the compiled one, and compiling takes a minute or two of each
network: so this section comes after the one without, and stands beside it.
"""

from tests.gpu.record import Record
from tests.gpu.training import cifar, row, sid_speed


def run(record: Record) -> None:
    """Fill the table; the network that takes longest to compile comes last."""
    row(record, "fashion", sid_speed(record, "fashion", 128, "bfloat16", compiling="auto"))
    row(record, "64x64", sid_speed(record, "64x64", 256, "bfloat16", compiling="auto"))
    cifar(record, compiling="auto")
