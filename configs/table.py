"""QuadSNet on one's own images: a CSV with columns path, label and, if known, split and group.

  ./launch/local.sh --config=configs/table.py --config.data.root=TABLE.csv --workdir=runs/mine

Paths are relative to the CSV. Other column names: --config.data.label=COLUMN and so on.
"""

from ml_collections import ConfigDict

from configs import common, folder


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; `:smoke` is a few steps of it."""
  config = folder.get_config()
  config.data.name = "table"
  return common.choose(arg, **{"": config, "smoke": common.smoke(config)})
