"""Gray-MedNet fine-tuned on Kermany's chest films, official test, patients as groups.

  python -m medjax.main --config=configs/mednet/kermany_cxr.py \
    --config.data.root=FOLDER --config.init_from=runs/pretrain_gray/pretrain \
    --workdir=runs/kermany_cxr

PneumoniaMNIST's images are crops of these: keep them out of the pool. Not run to its end on the
real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.mednet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data = dict(name="chest_xray_kermany", channels=1)
  augment = dict(name="cxr_safe")
  return paper.target(arg, "Gray-MedNet on Kermany's chest films", "gray", data, augment)
