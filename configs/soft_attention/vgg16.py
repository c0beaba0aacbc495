"""The authors' VGG-16 with soft attention inside on HAM10000 (Nguyen et al. 2022, table A3).

  python -m medjax.main --config=configs/soft_attention/vgg16.py \
    --config.data.root=FOLDER --workdir=runs/vgg16

The paper has it with augmented data alone, `:augmented`. Not run to its end on the real files.
Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.soft_attention import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  model = dict(name="vgg16_soft_attention", backbone=dict(name="vgg16", preprocess="tf"))
  return paper.experiment(arg, "vgg16", model=model)
