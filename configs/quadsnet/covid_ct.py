"""QuadSNet on COVID-CT, official split (425 train, 118 val, 203 test), 64 px.

  python -m medjax.main --config=configs/quadsnet/covid_ct.py \
    --config.data.root=FOLDER --workdir=runs/covid_ct

Test accuracy of `--config.seed=0`, 1 and 2: 0.660, 0.714, 0.665, mean 0.680; intervals over source
figures and patients are about 0.11 wide to each side. Minutes on two CPU cores: 6 to 15, with
other work beside it.

`:paper` is the literal setting of Ali et al. 2021 (batch-norm momentum 0.99, margin loss, Adam
1e-4, batch 32, no augmentation), here for 16 epochs at 64 px. With 13 steps an epoch its running
statistics lag: after 16 epochs it calls every image non-COVID, accuracy 0.517, the majority's, with
an AUC of 0.713. The same training with statistics estimated anew before each evaluation,
`--config.eval.recalibrate=416`: accuracy 0.695 (0.593 to 0.785), AUC 0.725.
"""

from ml_collections import ConfigDict

from configs import common
from configs.quadsnet import paper

SHORT = dict(length="16 epochs", stop=dict(monitor="", patience=0))
PAPER = common.merged(paper.PAPER, dict(data=dict(image_size=64), train=SHORT))


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data, augment = dict(name="covid_ct"), dict(name="cxr_safe", hflip=True)
  return paper.experiment(arg, "QuadSNet on COVID-CT", data, augment, "16 epochs", PAPER)
