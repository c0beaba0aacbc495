"""ResNet50 with soft attention and metadata on HAM10000 (Nguyen et al. 2022, section 4).

  python -m medjax.main --config=configs/soft_attention/resnet50.py \
    --config.data.root=FOLDER --workdir=runs/resnet50

Without metadata the notebooks pool the map: `--config.model.pool=gap`. Not run to its end on the
real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.soft_attention import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  return paper.experiment(arg, "resnet50", code=dict(train=dict(stop=dict(patience=25))))
