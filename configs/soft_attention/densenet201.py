"""DenseNet201 with soft attention and metadata on HAM10000 (Nguyen et al. 2022, section 4).

  python -m medjax.main --config=configs/soft_attention/densenet201.py \
    --config.data.root=FOLDER --workdir=runs/densenet201

The published figures are of a run on raw images, from 0 to 255. Not run to its end on the real
files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.soft_attention import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  return paper.experiment(arg, "densenet201", code=dict(model=dict(backbone=dict(preprocess="tf"))))
