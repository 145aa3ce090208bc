"""EDM networks: a denoiser around a U-Net, and its file format."""

from distill.networks.denoiser import Denoiser, NetworkConfig

__all__ = ["Denoiser", "NetworkConfig"]
