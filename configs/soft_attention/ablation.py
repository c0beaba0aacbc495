"""What do age, sex and place of a lesion tell beside its image? Image, metadata, and both.

  python -m medjax.main --config=configs/soft_attention/ablation.py \
    --config.data.root=FOLDER --workdir=runs/ablation

MobileNet-V3 Small with soft attention on HAM10000, dealt by lesion, as in `mobilenet_v3_small.py`;
the same without metadata; and two dense layers on the metadata alone (Nguyen et al. 2022, section
3; Gessert et al. 2020). `study_summary.csv` in the workdir has the paired differences to the image
alone. Not run to its end on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.soft_attention import paper

ARMS = dict(
  image=dict(metadata="none"),
  both=dict(metadata="dense"),
  metadata=dict(name="metadata_mlp", metadata="none"),
)


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  config = paper.experiment(arg, "mobilenet_v3_small")
  config.title = "What metadata tell beside the image, HAM10000"
  config.study = dict(columns=("arm",), baseline="image")
  config.stages = tuple(dict(name=arm, cell=(arm,), model=model) for arm, model in ARMS.items())
  return config
