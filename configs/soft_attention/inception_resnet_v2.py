"""Inception-ResNet-V2 with soft attention and metadata on HAM10000 (Nguyen et al. 2022, section 4).

  python -m medjax.main --config=configs/soft_attention/inception_resnet_v2.py \
    --config.data.root=FOLDER --workdir=runs/inception_resnet_v2

The notebooks' best run had no plateau rule and 150 epochs. Not run to its end on the real files.
Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.soft_attention import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  return paper.experiment(arg, "inception_resnet_v2", size=299, smallest=96)
