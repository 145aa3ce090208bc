"""EDM networks: a denoiser around a U-Net."""

from distill.networks.denoiser import Denoiser, NetworkConfig

__all__ = ["Denoiser", "NetworkConfig"]
