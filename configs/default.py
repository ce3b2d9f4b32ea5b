"""The paper's settings, from `deepemd_jax/config/defaults.py`."""

from deepemd_jax.config.defaults import get_config

__all__ = ["get_config"]
