"""Networks: families of raw networks, and the denoiser around each."""

from distill.networks.denoiser import Denoiser
from distill.networks.family import NetworkLayout, RawNetwork
from distill.networks.registry import AnyNetwork, family_of, read_config

__all__ = [
    "AnyNetwork",
    "Denoiser",
    "NetworkLayout",
    "RawNetwork",
    "family_of",
    "read_config",
]
