"""Gray-MedNet fine-tuned on COVID-CT, dealt by patient and source figure.

  python -m medjax.main --config=configs/mednet/covid_ct.py \
    --config.data.root=FOLDER --config.init_from=runs/pretrain_gray/pretrain \
    --workdir=runs/covid_ct

Not run to its end on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.mednet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  split = dict(mode="grouped", val=0.17, test=0.27)
  data = dict(name="covid_ct", channels=1, split=split)
  augment = dict(name="cxr_safe", hflip=True)
  return paper.target(arg, "Gray-MedNet on COVID-CT", "gray", data, augment)
