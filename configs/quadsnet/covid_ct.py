"""QuadSNet on COVID-CT, official split (425 train, 118 val, 203 test), 64 px.

  python -m medjax.main --config=configs/quadsnet/covid_ct.py \
    --config.data.root=FOLDER --workdir=runs/covid_ct

Test accuracy of `--config.seed=0`, 1 and 2: 0.660, 0.714, 0.665, mean 0.680; intervals over source
figures and patients are about 0.11 wide to each side. Minutes on two CPU cores: 6 to 15, with
other work beside it.

`:paper` is the literal setting of Ali et al. 2021 (batch-norm momentum 0.99, margin loss, Adam
1e-4, batch 32, no augmentation). With 13 steps an epoch its running statistics lag: after 16 epochs
it calls every image non-COVID, accuracy 0.517, the majority's, with an AUC of 0.713.
The same training with statistics estimated anew before each evaluation,
`--config.eval.recalibrate=416`: accuracy 0.695 (0.593 to 0.785), AUC 0.725.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants `:paper` and `:smoke`."""
  config = ConfigDict(
    dict(
      title="QuadSNet on COVID-CT",
      data=dict(name="covid_ct", root=f"{common.DATA}/covid_ct", image_size=64),
      augment=dict(name="cxr_safe", hflip=True),
      model=dict(name="quadsnet", bn_momentum=0.9),
      objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
      optimizer=dict(name="adamw", lr=1e-3),
      train=dict(batch_size=32, length="16 epochs"),
    )
  )
  return common.choose(arg, **{"": config, "paper": _paper(config), "smoke": common.smoke(config)})


def _paper(config: ConfigDict) -> ConfigDict:
  config = ConfigDict(config.to_dict())
  config.augment = dict(name="none")
  config.model = dict(name="quadsnet", bn_momentum=0.99)
  config.objective = dict(name="supervised", loss="margin", class_weights="balanced")
  config.optimizer = dict(name="adam", lr=1e-4, schedule="constant", warmup="0 %", clip=0.0)
  return config
