"""Gray-MedNet from `pretrain_gray` fine-tuned on PneumoniaMNIST, official split, 28 px drawn at 64.

  python -m medjax.main --config=configs/mednet/finetune_pneumoniamnist.py \
    --config.data.root=FILE.npz --config.init_from=runs/pretrain_gray/pretrain \
    --workdir=runs/finetune_pneumoniamnist

From 60 steps of `pretrain_gray`: test accuracy 0.853 (0.825 to 0.880), AUC 0.950 (0.932 to 0.965)
over 624 images. Eight images stand in both train and val, and the pool of MedNIST was not audited
against this set.

`:smoke` starts from random weights unless `init_from` is given, so that it runs by itself.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; `:smoke` is a few steps of it."""
  config = ConfigDict(
    dict(
      title="Gray-MedNet on PneumoniaMNIST",
      data=dict(name="npz", root=f"{common.DATA}/pneumoniamnist/pneumoniamnist.npz", image_size=64),
      augment="cxr_safe",
      model=dict(name="mednet", width=16),
      objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
      optimizer=dict(name="adamw", lr=3e-4),
      train=dict(batch_size=64, length="3 epochs"),
      init_from="runs/pretrain_gray/pretrain",
    )
  )
  smoke = common.smoke(config)
  smoke.init_from = ""
  return common.choose(arg, **{"": config, "smoke": smoke})
