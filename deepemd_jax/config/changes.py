"""Changes of the test that a config can name, such as "5-shot" or "grid"."""

import dataclasses
import re

from deepemd_jax.config.settings import Settings

SHOTS = re.compile(r"([1-9]\d*)-shot")


def changed(settings: Settings, change: str) -> Settings:
  """Returns settings with another number of shots, or with other nodes."""
  if shots := SHOTS.fullmatch(change):
    shape = dataclasses.replace(settings.episode, shot=int(shots[1]))
    return dataclasses.replace(settings, episode=shape)
  view = dataclasses.replace(settings.view, kind=change)
  return dataclasses.replace(settings, view=view)
