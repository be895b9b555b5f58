"""Devices that slots are placed on: NVIDIA GPUs, the CPU with its RAM, simulated GPUs."""
