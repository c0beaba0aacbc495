"""Gray-MedNet pretrained by SimCLR on a folder of zip files, here MedNIST: six modalities, 64 px.

python -m medjax.main --config=configs/mednet/pretrain_gray.py \
    --config.data.root=FOLDER --workdir=runs/pretrain_gray

Run so far for `--config.train.length="60 steps"`, a little more than one epoch, in which NT-Xent
fell to 5.08 and the cosine of two views of an image rose to 0.81.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; `:smoke` is a few steps of it."""
  config = ConfigDict(
    dict(
      title="Gray-MedNet, SimCLR on MedNIST",
      data=dict(name="zip_folder", root=f"{common.DATA}/mednist", image_size=64),
      augment="simclr_gray",
      model=dict(name="mednet", width=16),
      objective="simclr",
      optimizer=dict(name="adamw", lr=1e-3),
      train=dict(batch_size=256, length="4 epochs"),
      stages=(dict(name="pretrain"),),
    )
  )
  return common.choose(arg, **{"": config, "smoke": common.smoke(config)})
