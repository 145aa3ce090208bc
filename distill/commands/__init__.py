"""The commands of `sid-distill`, one file each.

torch takes seconds to import: each command imports what it needs, so that --help does not.
"""
