"""QuadSNet on one's own images: a folder a class, with or without train/, val/, test/ above.

./launch/local.sh --config=configs/folder.py --config.data.root=FOLDER --workdir=runs/mine
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; `:smoke` is a few steps of it."""
  config = ConfigDict(
    dict(
      data=dict(name="image_folder", image_size=64),
      augment="cxr_safe",
      model=dict(name="quadsnet", bn_momentum=0.9),
      objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
      optimizer=dict(name="adamw", lr=1e-3),
      train=dict(batch_size=32, length="30 epochs"),
    )
  )
  return common.choose(arg, **{"": config, "smoke": common.smoke(config)})
