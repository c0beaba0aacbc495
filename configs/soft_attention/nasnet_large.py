"""NASNet Large with soft attention and metadata on HAM10000 (Nguyen et al. 2022, section 4).

  python -m medjax.main --config=configs/soft_attention/nasnet_large.py \
    --config.data.root=FOLDER --workdir=runs/nasnet_large

Not run to its end on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.soft_attention import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  return paper.experiment(arg, "nasnet_large", size=331, smallest=64)
