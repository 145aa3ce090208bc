"""What every method stands on: the loop, optimiser steps, processes and precision."""
