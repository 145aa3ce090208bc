"""Capacity planning: from a measured service curve and a wish to machines and settings.

`measure` measures a curve (`sid bench --curve`), `search` finds the fewest machines that meet a
wish (`sid plan`) by `simulation`, which runs the server's own batcher on a simulated clock.
"""


class PlanError(Exception):
    """A curve or wish that no plan can be made of; the message is one line for people."""
