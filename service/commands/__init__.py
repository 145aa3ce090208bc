"""The commands of `sid`, one file each: their options and help. The work is in the packages below.

Heavy imports stand inside the commands, so that `sid --help` answers at once.
"""
