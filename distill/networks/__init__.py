"""EDM networks: a denoiser around a U-Net."""

from distill.networks.config import NetworkConfig
from distill.networks.denoiser import Denoiser
from distill.networks.layout import NetworkLayout

__all__ = ["Denoiser", "NetworkConfig", "NetworkLayout"]
