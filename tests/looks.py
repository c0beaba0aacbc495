"""Configs whose networks learn in minutes what tells phantoms apart, to see where they look.

`quadsnet`, `mednet` and `soft_attention`, all small, on films of 64 pixels.
"""

from ml_collections import ConfigDict

MODELS = dict(
  quadsnet=dict(name="quadsnet", widths=(8, 16, 32), hidden=0, pool="gap", bn_momentum=0.9),
  mednet=dict(
    name="mednet", width=8, blocks=3, pooled=(2, 3), connections=(), hidden=0, bn_momentum=0.9
  ),
  soft_attention=dict(
    name="soft_attention",
    backbone=dict(name="densenet121", units=(2, 2), growth=8, bn_momentum=0.9),
    cut="conv3_block2_concat",
    maps=4,
    pool="gap",
  ),
)
LENGTHS = dict(quadsnet="1000 steps", mednet="400 steps", soft_attention="800 steps")


def get_config(arg: str = "quadsnet") -> ConfigDict:
  """The experiment."""
  return ConfigDict(
    dict(
      data=dict(name="phantom", image_size=64, patients=1000, shares=(1, 1, 1)),
      model=MODELS[arg],
      augment="none",
      objective="supervised",
      optimizer=dict(lr=3e-3),
      train=dict(batch_size=32, length=LENGTHS[arg], steps_per_dispatch=10, log_every="100 steps"),
      eval=dict(bootstrap=100, every="200 steps"),
    )
  )
