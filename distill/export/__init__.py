"""From a generator's weights to a bundle that the gateway and Triton serve."""
