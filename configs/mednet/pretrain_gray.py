"""Gray-MedNet pretrained by SimCLR on a folder of zip files, here MedNIST: six modalities, 64 px.

python -m medjax.main --config=configs/mednet/pretrain_gray.py \
    --config.data.root=FOLDER --workdir=runs/pretrain_gray

Run so far for `--config.train.length="60 steps"`, a little more than one epoch, in which NT-Xent
fell to 5.08 and the cosine of two views of an image rose to 0.81. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs import common
from configs.mednet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data = dict(name="zip_folder", root=f"{common.DATA}/mednist", target="source")
  augment, watchers = dict(name="simclr_gray"), ("chest_xray_kermany", "covid_ct")
  return paper.pretraining(arg, "Gray-MedNet, SimCLR on MedNIST", data, augment, watchers)
