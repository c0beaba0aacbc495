"""QuadSNet on COVID-CT, split anew so that no patient and no source figure is in two parts.

  python -m medjax.main --config=configs/quadsnet/covid_ct_grouped.py \
    --config.data.root=FOLDER --workdir=runs/covid_ct_grouped

The official split cuts some published figures across train and test; this one does not. Seed 0:
test accuracy 0.672 (0.560 to 0.788), AUC 0.788 (0.686 to 0.870) over 201 images of 66 groups.
"""

from ml_collections import ConfigDict

from configs.quadsnet import covid_ct


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as those of `covid_ct`."""
  config = covid_ct.get_config(arg)
  config.data.split = dict(mode="grouped", val=0.17, test=0.27)
  return config
