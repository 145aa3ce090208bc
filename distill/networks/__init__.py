"""EDM networks: a denoiser around a U-Net."""

from distill.networks.config import NetworkConfig
from distill.networks.denoiser import Denoiser

__all__ = ["Denoiser", "NetworkConfig"]
